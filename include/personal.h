/*
 * personal.h
 *		Does a text have something in it that looks like personal data?
 *
 * By its form and, where there is one, its check digit.  Works in every
 * encoding in which ASCII is ASCII.
 */
#ifndef NOMP_PERSONAL_H
#define NOMP_PERSONAL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct PersonalLook
{
	bool		number;			/* a Swedish personal or coordination number */
	bool		number_shape;	/* as many digits, whatever date and check digit */
	bool		email;
	bool		phone;			/* a Swedish phone number */
} PersonalLook;

extern PersonalLook personal_look(const char *text, size_t len);

#endif							/* NOMP_PERSONAL_H */
