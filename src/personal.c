/*
 * personal.c
 *		Does a text have something in it that looks like personal data?
 *
 * Swedish personal identity numbers and coordination numbers (whose day is 60
 * more) have ten digits, YYMMDD-NNNC, or twelve with the century; C is Luhn's
 * check digit over the ten.  One in a hundred and forty random numbers passes:
 * so it is counted too how many had the shape only.
 */
#include <string.h>

#include "personal.h"

typedef struct Text
{
	const char *bytes;
	size_t		len;
} Text;

/* The byte there; 0 outside, which is in no token. */
static char
at(Text text, size_t place)
{
	return place < text.len ? text.bytes[place] : '\0';
}

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Letters of other alphabets included. */
static bool
is_word(char c)
{
	return is_digit(c) || is_letter(c) || c == '_' || (c & 0x80) != 0;
}

/* Nothing before it that it could be the end of? */
static bool
begins(Text text, size_t place)
{
	char		before = place > 0 ? at(text, place - 1) : '\0';

	return !is_word(before) && before != '-' && before != '+' && before != '.';
}

/* Nothing after it that it could be the beginning of? */
static bool
ends(Text text, size_t place)
{
	char		after = at(text, place);

	return !is_word(after) && !((after == '-' || after == '.') && is_digit(at(text, place + 1)));
}

static int
two(const char *digits)
{
	return (digits[0] - '0') * 10 + digits[1] - '0';
}

static bool
luhn(const char *digits, int n)
{
	int			sum = 0;

	for (int i = 0; i < n; i++)
	{
		int			product = (digits[i] - '0') * (i % 2 == 0 ? 2 : 1);

		sum += product / 10 + product % 10;
	}
	return sum % 10 == 0;
}

/* Century -1: not known, so that every fourth year can be a leap year. */
static bool
is_date(int century, int year, int month, int day)
{
	static const int days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool		leap = year % 4 == 0 && (year != 0 || century < 0 || century % 4 == 0);

	if (day > 60)
		day -= 60;
	return month >= 1 && month <= 12 && day >= 1 && day <= days[month - 1] &&
		(month != 2 || day < 29 || leap);
}

/* A personal number that begins there: its digits, and where it ends; or 0. */
static size_t
read_number(Text text, size_t place, char digits[12], int *n)
{
	size_t		end = place;

	*n = 0;
	for (; end < text.len && *n <= 12; end++)
	{
		char		c = at(text, end);

		if (is_digit(c) && *n < 12)
			digits[(*n)++] = c;
		else if (!((c == '-' || c == '+') && (*n == 6 || *n == 8) && end == place + *n))
			break;
	}
	/* four digits after the sign, if there is one */
	if ((*n != 10 && *n != 12) || !ends(text, end) ||
		(end - place != (size_t) *n && is_digit(at(text, place + *n - 4))))
		return 0;
	return end;
}

static void
look_for_number(Text text, size_t place, PersonalLook *look)
{
	char		digits[12];
	int			n;
	const char *ten;
	int			century = -1;

	if (!begins(text, place) || read_number(text, place, digits, &n) == 0)
		return;
	ten = digits + n - 10;
	if (n == 12)
		century = two(digits);
	if (century >= 0 && (century < 18 || century > 20))
		return;
	look->number_shape = true;
	if (is_date(century, two(ten), two(ten + 2), two(ten + 4)) && luhn(ten, 10))
		look->number = true;
}

static bool
is_local(char c)
{
	return c != '\0' && (is_digit(c) || is_letter(c) || strchr("._%+-", c) != NULL);
}

/* Around an "@". */
static void
look_for_email(Text text, size_t place, PersonalLook *look)
{
	size_t		end = place + 1;
	size_t		top = 0;		/* where the top-level domain begins */

	if (place == 0 || !is_local(at(text, place - 1)) || !(is_digit(at(text, end)) || is_letter(at(text, end))))
		return;
	for (; is_digit(at(text, end)) || is_letter(at(text, end)) || at(text, end) == '-' || at(text, end) == '.'; end++)
	{
		if (at(text, end) == '.' && is_letter(at(text, end + 1)))
			top = end + 1;
	}
	look->email = look->email || (top > 0 && is_letter(at(text, top + 1)));
}

/* Digits from there with single separators between groups; where they end. */
static size_t
read_groups(Text text, size_t place, const char *separators, int *n)
{
	size_t		end = place;

	*n = 0;
	while (is_digit(at(text, end)) ||
		   (*n > 0 && at(text, end) != '\0' && strchr(separators, at(text, end)) != NULL && is_digit(at(text, end + 1))))
	{
		*n += is_digit(at(text, end));
		end++;
	}
	return end;
}

static bool
starts_with(Text text, size_t place, const char *with)
{
	return text.len - place >= strlen(with) && memcmp(text.bytes + place, with, strlen(with)) == 0;
}

/* +46 70 123 45 67, 0046(0)8-12345678 */
static bool
is_international(Text text, size_t place)
{
	size_t		from = place + (starts_with(text, place, "+46") ? 3 : starts_with(text, place, "0046") ? 4 : 0);
	int			n;

	if (from == place)
		return false;
	while (at(text, from) == ' ' || at(text, from) == '-')
		from++;
	if (starts_with(text, from, "(0)"))
		from += 3;
	while (at(text, from) == ' ')
		from++;
	return ends(text, read_groups(text, from, " -/", &n)) && n >= 7 && n <= 10;
}

/* 070-123 45 67, 0701234567 */
static bool
is_mobile(Text text, size_t place)
{
	int			n;

	return at(text, place) == '0' && at(text, place + 1) == '7' &&
		at(text, place + 2) != '\0' && strchr("02369", at(text, place + 2)) != NULL &&
		ends(text, read_groups(text, place, " -/", &n)) && n == 10;
}

/* 08-123 45 67, 0470-12 34 56: a hyphen after the area code */
static bool
is_landline(Text text, size_t place)
{
	size_t		hyphen = place;
	int			n;

	while (is_digit(at(text, hyphen)))
		hyphen++;
	return at(text, place) == '0' && at(text, place + 1) != '0' &&
		hyphen - place >= 2 && hyphen - place <= 4 && at(text, hyphen) == '-' &&
		ends(text, read_groups(text, hyphen + 1, " ", &n)) &&
		n >= 5 && n <= 8 && n + (hyphen - place) <= 10 && n + (hyphen - place) >= 8;
}

static bool
is_phone(Text text, size_t place)
{
	return begins(text, place) &&
		(is_international(text, place) || is_mobile(text, place) || is_landline(text, place));
}

PersonalLook
personal_look(const char *bytes, size_t len)
{
	Text		text = {bytes, len};
	PersonalLook look = {0};

	for (size_t i = 0; i < len; i++)
	{
		if (bytes[i] == '@')
			look_for_email(text, i, &look);
		else if (is_digit(bytes[i]) || bytes[i] == '+')
		{
			look_for_number(text, i, &look);
			look.phone = look.phone || is_phone(text, i);
		}
	}
	/* seven in a hundred mobile numbers have the digits of a date */
	if (look.number)
		look.phone = false;
	if (look.phone)
		look.number_shape = false;
	return look;
}
