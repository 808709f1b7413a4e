/*
 * aws_xml.c
 *		The few elements that are wanted of an answer in XML, by expat.
 *
 * STS answers in XML, and so do errors of some gateways.  A document type is
 * refused: with it go entities, and what can be done with them.
 */
#include <string.h>

#include <expat.h>

#include "aws_xml.h"

#define MAX_DEPTH	16
#define MAX_NAME	64
#define MAX_VALUE	32768

typedef struct Reading
{
	XML_Parser	parser;
	AwsElement *wanted;
	int			n;
	char		path[MAX_DEPTH][MAX_NAME];
	int			depth;
	AwsElement *current;		/* inside this one */
	bool		bad;
} Reading;

static void
refuse(Reading *r)
{
	r->bad = true;
	(void) XML_StopParser(r->parser, XML_FALSE);
}

static void XMLCALL
begin(void *arg, const XML_Char *name, const XML_Char **attributes)
{
	Reading    *r = arg;

	if (r->depth >= MAX_DEPTH || strlen(name) >= MAX_NAME || r->current != NULL)
	{
		refuse(r);
		return;
	}
	strcpy(r->path[r->depth++], name);
	for (int i = 0; i < r->n && r->depth >= 2; i++)
	{
		AwsElement *e = &r->wanted[i];

		if (strcmp(e->name, name) != 0 || strcmp(e->parent, r->path[r->depth - 2]) != 0)
			continue;
		if (e->seen)
			refuse(r);
		e->seen = true;
		r->current = e;
	}
}

static void XMLCALL
end(void *arg, const XML_Char *name)
{
	Reading    *r = arg;

	r->current = NULL;
	r->depth--;
}

static void XMLCALL
characters(void *arg, const XML_Char *s, int len)
{
	Reading    *r = arg;

	if (r->current == NULL)
		return;
	if (r->current->text.len + (size_t) len > MAX_VALUE)
		refuse(r);
	else
		aws_text_add(&r->current->text, s, (size_t) len);
	if (r->current->text.bad)
		refuse(r);
}

static void XMLCALL
doctype(void *arg, const XML_Char *name, const XML_Char *system_id,
		const XML_Char *public_id, int subset)
{
	refuse(arg);
}

bool
aws_xml_read(const char *xml, size_t len, AwsElement *wanted, int n)
{
	const XML_Memory_Handling_Suite memory = {wiping_malloc, wiping_realloc, wiping_free};
	Reading    *r = wiping_calloc(1, sizeof(*r));
	bool		done = false;

	if (r == NULL || len > AWS_TEXT_MAX)
		return false;
	r->wanted = wanted;
	r->n = n;
	r->parser = XML_ParserCreate_MM(NULL, &memory, NULL);
	if (r->parser != NULL)
	{
		XML_SetUserData(r->parser, r);
		XML_SetElementHandler(r->parser, begin, end);
		XML_SetCharacterDataHandler(r->parser, characters);
		XML_SetStartDoctypeDeclHandler(r->parser, doctype);
		done = XML_Parse(r->parser, xml, (int) len, XML_TRUE) == XML_STATUS_OK && !r->bad;
		XML_ParserFree(r->parser);
	}
	wiping_free(r);
	if (!done)
		aws_xml_free(wanted, n);
	return done;
}

void
aws_xml_free(AwsElement *wanted, int n)
{
	for (int i = 0; i < n; i++)
	{
		aws_text_free(&wanted[i].text);
		wanted[i].seen = false;
	}
}
