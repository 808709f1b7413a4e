/*
 * aws_xml.h
 *		The few elements that are wanted of an answer in XML, by expat.
 */
#ifndef NOMP_AWS_XML_H
#define NOMP_AWS_XML_H

#include "aws_memory.h"

/* An element, by its name and its parent's; what it says goes to "text". */
typedef struct AwsElement
{
	const char *parent;
	const char *name;
	AwsText		text;
	bool		seen;
} AwsElement;

/* False if it is no XML, or has a wanted element twice.  Free the texts. */
extern bool aws_xml_read(const char *xml, size_t len, AwsElement *wanted, int n);
extern void aws_xml_free(AwsElement *wanted, int n);

#endif							/* NOMP_AWS_XML_H */
