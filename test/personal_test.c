/*
 * personal_test.c
 *		What looks like personal data and what does not.  The numbers are made
 *		up: Skatteverket gives out 121212-1212 as an example.
 */
#include "personal.h"
#include "tap.h"

static PersonalLook
look(const char *text)
{
	return personal_look(text, strlen(text));
}

static void
test_numbers(void)
{
	static const char *const valid[] = {
		"1212121212", "121212-1212", "121212+1212", "191212121212", "19121212-1212", "20121212-1212",
		"701272-0004",			/* born on the 12th: a coordination number */
		"Elev 20121212-1212, klass 4B", "(121212-1212)", "pnr:121212-1212;", "121212-1212.",
		"1: 999999-9999, 2: 121212-1212", "\303\205sa 121212-1212",
		"20000229-0005", "000229-0005",
	};
	static const char *const shaped[] = {
		"1212121213",			/* the check digit */
		"121312-1212", "120012-1212", "121232-1213", "121292-1212", /* the date */
		"19000229-0005", "202402301234", "5560360793",	/* a company's */
	};
	static const char *const nothing[] = {
		"", "121212", "12121212121", "1212121212121", "121212 - 1212", "1212-121212", "12-12-12-1212",
		"21121212-1212", "a121212-1212", "121212-1212a", "5121212-1212", "121212-12123", "121212-1212-1",
		"00000000-0000-0000-0000-121212121212", "1.121212-1212", "121212--1212", "121212-12-12", "3.1212121212",
		"121212-1212_x",
	};

	for (size_t i = 0; i < sizeof(valid) / sizeof(*valid); i++)
		tap_ok(look(valid[i]).number && look(valid[i]).number_shape, "a personal number: %s", valid[i]);
	for (size_t i = 0; i < sizeof(shaped) / sizeof(*shaped); i++)
		tap_ok(!look(shaped[i]).number && look(shaped[i]).number_shape, "only its shape: %s", shaped[i]);
	for (size_t i = 0; i < sizeof(nothing) / sizeof(*nothing); i++)
		tap_ok(!look(nothing[i]).number && !look(nothing[i]).number_shape, "not even that: %s", nothing[i]);
}

static void
test_emails(void)
{
	static const char *const valid[] = {
		"a@b.se", "anna.svensson+skola@example.co.uk", "<anna@example.se>", "mail: anna@xn--frga-qoa.se.",
	};
	static const char *const nothing[] = {"@", "a@", "@b.se", "a@b", "a@b.", "a@b.1", "a@b.s", "a @b.se", "a@ b.se", "a@.se"};

	for (size_t i = 0; i < sizeof(valid) / sizeof(*valid); i++)
		tap_ok(look(valid[i]).email, "an e-mail address: %s", valid[i]);
	for (size_t i = 0; i < sizeof(nothing) / sizeof(*nothing); i++)
		tap_ok(!look(nothing[i]).email, "none: %s", nothing[i]);
}

static void
test_phones(void)
{
	static const char *const valid[] = {
		"+46701234567", "+46 70 123 45 67", "+46(0)70-123 45 67", "0046 8 123 456 78", "0701234567", "070-123 45 67",
		"076 123 45 67", "073/123 45 67", "08-123 45 67", "0470-12 34 56", "040-123456", "ring 070-1234567!",
	};
	static const char *const nothing[] = {
		"", "+46", "+4670", "+47 70 123 45 67", "070123456", "07012345678", "0712345678", "08-1234", "08 123 45 67", "00-1234567",
		"01-02-2020", "2020-01-02", "10-1234567", "01234-567890", "070-123 45 67 8", "x0701234567", "0.0701234567", "08-1234567890",
		"121212-1212", "0701011231",	/* both: a personal number wins */
	};

	for (size_t i = 0; i < sizeof(valid) / sizeof(*valid); i++)
		tap_ok(look(valid[i]).phone, "a phone number: %s", valid[i]);
	for (size_t i = 0; i < sizeof(nothing) / sizeof(*nothing); i++)
		tap_ok(!look(nothing[i]).phone, "none: %s", nothing[i]);
	tap_ok(look("0701011231").number, "0701011231 is a personal number");
}

/* Every check digit but one is wrong, and every prefix is read within bounds. */
static void
test_bounds(void)
{
	const char *all = "20121212-1212 a@b.se +46(0)70-123 45 67 0470-12 34 56 @ + - 0 07 (0)";
	int			right = 0;

	for (int digit = 0; digit < 10; digit++)
	{
		char		text[32];

		snprintf(text, sizeof(text), "121212-121%d", digit);
		right += look(text).number;
	}
	tap_ok(right == 1, "one check digit of ten is right");
	for (size_t len = 0; len <= strlen(all); len++)
	{
		for (size_t from = 0; from <= len; from++)
		{
			/* of that size, so that the sanitizers see what is read beyond it */
			char	   *copy = malloc(len - from + 1);

			memcpy(copy, all + from, len - from);
			copy = realloc(copy, len - from > 0 ? len - from : 1);
			(void) personal_look(copy, len - from);
			free(copy);
		}
	}
	tap_ok(true, "no part of a text is read beyond its end");
}

int
main(void)
{
	test_numbers();
	test_emails();
	test_phones();
	test_bounds();
	return tap_done();
}
