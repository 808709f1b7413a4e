/*
 * aws_config.h
 *		The shared files of AWS's tools, ~/.aws/credentials and ~/.aws/config.
 */
#ifndef NOMP_AWS_CONFIG_H
#define NOMP_AWS_CONFIG_H

#include "aws_memory.h"

/* What is read of a profile. */
typedef enum AwsField
{
	AWS_ACCESS_KEY,
	AWS_SECRET,
	AWS_TOKEN,
	AWS_ROLE_ARN,
	AWS_SOURCE_PROFILE,
	AWS_CREDENTIAL_SOURCE,
	AWS_WEB_IDENTITY_FILE,
	AWS_SESSION_NAME,
	AWS_EXTERNAL_ID,
	AWS_DURATION,
	AWS_MFA,
	AWS_PROCESS,
	AWS_SSO_SESSION,
	AWS_SSO_URL,
	AWS_LOGIN_SESSION,
	AWS_FIELDS
} AwsField;

/* {0} is an empty one. */
typedef struct AwsProfile
{
	bool		found;
	char	   *field[AWS_FIELDS];	/* NULL: not there */
} AwsProfile;

/* Who else may see or change a file. */
typedef enum AwsFileRule
{
	AWS_FILE_SECRET,			/* nobody may read it */
	AWS_FILE_CONFIG,			/* nobody may write it */
	AWS_FILE_TOKEN				/* not everybody may write it */
} AwsFileRule;

/*
 * Read a profile from both files; what is in the credentials file counts
 * more.  KS_OK with found = false if it is in neither.
 */
extern KsStatus aws_profile_read(const char *name, AwsProfile *out, KsFailure *why);
extern void aws_profile_free(AwsProfile *profile);

/* Changes when one of the two files does. */
extern uint64_t aws_config_stamp(void);

/*
 * Read a small file.  *absent: there is none, which is no failure if
 * "absent" is given.
 */
extern KsStatus aws_file_read(const char *path, AwsFileRule rule, bool *absent,
							  AwsText *out, KsFailure *why);

/*
 * Take a profile's fields out of a file's text.  "config": its sections are
 * called "profile NAME".  0, or the number of the first line that is not
 * understood.  Pure.
 */
extern int	aws_config_parse(const char *text, bool config, const char *name,
							 AwsProfile *out);

#endif							/* NOMP_AWS_CONFIG_H */
