/*
 * aws_http.c
 *		One HTTP request and its answer, by libcurl, in time.
 *
 * What a server says is not trusted: headers and body have an upper length,
 * however slowly they come, and no word of them gets into a message.
 *
 * libcurl keeps a connection in the handle that made it.  Handles are taken
 * from the pool and given back, the last one first, so that few connections
 * are open when few threads call.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <curl/curl.h>

#include "aws_http.h"

#define MAX_BODY		(1024 * 1024 - 1)
#define MAX_HEAD		65536
#define MAX_IDLE		KS_MAX_IN_FLIGHT
#define IDLE_SECONDS	50L		/* before the services close it */

struct AwsHttp
{
	pthread_mutex_t lock;		/* guards the pool */
	CURL	   *idle[MAX_IDLE];
	int			n_idle;
	char		ca_file[512];
};

typedef struct Transfer
{
	AwsAnswer  *answer;
	size_t		head;			/* bytes of headers so far */
	bool		too_long;
} Transfer;

AwsHttp *
aws_http_create(const char *ca_file)
{
	AwsHttp    *http = calloc(1, sizeof(*http));

	if (http == NULL || strlen(ca_file) >= sizeof(http->ca_file) ||
		pthread_mutex_init(&http->lock, NULL) != 0)
	{
		free(http);
		return NULL;
	}
	strcpy(http->ca_file, ca_file);
	return http;
}

void
aws_http_free(AwsHttp *http)
{
	if (http == NULL)
		return;
	while (http->n_idle > 0)
		curl_easy_cleanup(http->idle[--http->n_idle]);
	(void) pthread_mutex_destroy(&http->lock);
	free(http);
}

static CURL *
take_handle(AwsHttp *http)
{
	CURL	   *curl = NULL;

	(void) pthread_mutex_lock(&http->lock);
	if (http->n_idle > 0)
		curl = http->idle[--http->n_idle];
	(void) pthread_mutex_unlock(&http->lock);
	return curl != NULL ? curl : curl_easy_init();
}

/* Nothing of a request stays in a handle but its connections. */
static void
give_back(AwsHttp *http, CURL *curl)
{
	curl_easy_reset(curl);
	(void) pthread_mutex_lock(&http->lock);
	if (http->n_idle < MAX_IDLE)
	{
		http->idle[http->n_idle++] = curl;
		curl = NULL;
	}
	(void) pthread_mutex_unlock(&http->lock);
	if (curl != NULL)
		curl_easy_cleanup(curl);
}

static size_t
take_body(char *data, size_t size, size_t n, void *arg)
{
	Transfer   *t = arg;

	if (n > MAX_BODY - t->answer->body.len)
	{
		t->too_long = true;
		return 0;
	}
	aws_text_add(&t->answer->body, data, n);
	return t->answer->body.bad ? 0 : n;
}

/* The value of a header line with that name, its length in "len"; or NULL. */
static const char *
value_of(const char *line, size_t *len, const char *name)
{
	size_t		name_len = strlen(name);

	if (*len <= name_len || strncasecmp(line, name, name_len) != 0 || line[name_len] != ':')
		return NULL;
	line += name_len + 1;
	*len -= name_len + 1;
	while (*len > 0 && (*line == ' ' || *line == '\t'))
	{
		line++;
		(*len)--;
	}
	while (*len > 0 && (line[*len - 1] == '\r' || line[*len - 1] == '\n'))
		(*len)--;
	return line;
}

static size_t
take_header(char *line, size_t size, size_t n, void *arg)
{
	Transfer   *t = arg;
	AwsAnswer  *answer = t->answer;
	size_t		len = n;
	const char *value;
	char		date[64];

	t->head += n;
	if (t->head > MAX_HEAD)
	{
		t->too_long = true;
		return 0;
	}
	if ((value = value_of(line, &len, "date")) != NULL)
	{
		aws_printable(date, sizeof(date), value, len);
		answer->date = (int64_t) curl_getdate(date, NULL);
		if (answer->date < 0)
			answer->date = 0;
	}
	len = n;
	if ((value = value_of(line, &len, "x-amzn-errortype")) != NULL)
		aws_printable(answer->error, sizeof(answer->error), value, len);
	return n;
}

/* A line break in a value would begin another header. */
static bool
is_clean(const char *value)
{
	for (; *value != '\0'; value++)
	{
		if ((unsigned char) *value < ' ' || *value == 0x7f)
			return false;
	}
	return true;
}

static struct curl_slist *
make_headers(const AwsRequest *request, bool *made)
{
	/* libcurl would ask before it sends, and name a type of its own */
	static const char *const unwanted[] = {"Expect:", "Content-Type:", "Accept:"};
	struct curl_slist *list = NULL;
	struct curl_slist *longer;
	AwsText		line = {0};
	bool		typed = false;

	*made = true;
	for (int i = 0; *made && i < request->n_headers; i++)
	{
		if (strcasecmp(request->headers[i].name, "host") == 0)
			continue;
		typed |= strcasecmp(request->headers[i].name, "content-type") == 0;
		line.len = 0;
		aws_text_add(&line, request->headers[i].name, strlen(request->headers[i].name));
		aws_text_add(&line, ": ", 2);
		aws_text_add(&line, request->headers[i].value, strlen(request->headers[i].value));
		longer = line.bad || !is_clean(line.data) ? NULL : curl_slist_append(list, line.data);
		*made = longer != NULL;
		list = *made ? longer : list;
	}
	for (int i = 0; *made && i < 3; i++)
	{
		if (i == 1 && typed)
			continue;
		longer = curl_slist_append(list, unwanted[i]);
		*made = longer != NULL;
		list = *made ? longer : list;
	}
	aws_text_free(&line);
	return list;
}

/* True if libcurl took every option. */
static bool
set_safety(AwsHttp *http, CURL *curl, const AwsRequest *request)
{
	const char *protocol = request->plain ? "http" : "https";

	return curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, protocol) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, protocol) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_PROXY, "") == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_NOPROXY, "*") == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L) == CURLE_OK &&
		(http->ca_file[0] == '\0' ||
		 (curl_easy_setopt(curl, CURLOPT_CAINFO, http->ca_file) == CURLE_OK &&
		  curl_easy_setopt(curl, CURLOPT_CAPATH, NULL) == CURLE_OK));
}

/*
 * QUICK_EXIT: a name that is being resolved has a thread of libcurl's, which
 * it would wait for after the time is over.
 */
static bool
set_times(CURL *curl, const AwsRequest *request, int64_t left)
{
	long		connect = request->connect_ms > 0 ? request->connect_ms : (long) (left / 3);

	return curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long) left) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, connect > 0 ? connect : 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_MAXAGE_CONN, IDLE_SECONDS) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_MAXCONNECTS, 3L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, request->once ? 1L : 0L) == CURLE_OK;
}

static bool
set_request(CURL *curl, const AwsRequest *request, struct curl_slist *headers)
{
	if (curl_easy_setopt(curl, CURLOPT_URL, request->url) != CURLE_OK ||
		curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers) != CURLE_OK ||
		curl_easy_setopt(curl, CURLOPT_USERAGENT, "nomp_crypt") != CURLE_OK)
		return false;
	if (strcmp(request->method, "GET") == 0)
		return curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L) == CURLE_OK;
	return curl_easy_setopt(curl, CURLOPT_POST, 1L) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request->method) == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request->body_len > 0 ? request->body : "") == CURLE_OK &&
		curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long) request->body_len) == CURLE_OK;
}

/* A host and port for messages. */
static const char *
name_host(const char *url, char *out, size_t size)
{
	const char *host = strstr(url, "://");
	size_t		len;

	host = host == NULL ? url : host + 3;
	len = strcspn(host, "/?");
	aws_printable(out, size, host, len);
	return out;
}

/* What went wrong, without a word of what the server sent. */
static KsStatus
explain(CURLcode code, CURL *curl, const Transfer *t, const AwsRequest *request,
		const char *detail, KsFailure *why)
{
	AwsAnswer  *answer = t->answer;
	long		sent = 0;
	char		host[120];
	char		words[160];

	name_host(request->url, host, sizeof(host));
	(void) curl_easy_getinfo(curl, CURLINFO_REQUEST_SIZE, &sent);
	answer->arrived = sent > 0;
	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			answer->again = true;
			return ks_fail(why, KS_TIMEOUT, answer->arrived ? "%s has not answered in time" :
						   "no connection to %s in time", host);
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_CONNECT:
		case CURLE_SSL_CONNECT_ERROR:
			answer->arrived = false;
			answer->again = true;
			break;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			answer->arrived = false;
			break;
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
		case CURLE_GOT_NOTHING:
		case CURLE_PARTIAL_FILE:
			answer->arrived = true;
			answer->again = true;
			return ks_fail(why, KS_NETWORK, "the connection to %s broke off", host);
		case CURLE_OUT_OF_MEMORY:
			return ks_fail(why, KS_MODULE_ERROR, "no memory for a request to %s", host);
		default:
			return ks_fail(why, KS_MODULE_ERROR, t->too_long ? "the answer of %s is too long" :
						   "%s has not answered with HTTP as it should", host);
	}
	aws_printable(words, sizeof(words), detail, strlen(detail));
	return ks_fail(why, KS_NETWORK, "no connection to %s: %s", host,
				   words[0] != '\0' ? words : curl_easy_strerror(code));
}

static KsStatus
perform(CURL *curl, const AwsRequest *request, Transfer *t, KsFailure *why)
{
	char		detail[CURL_ERROR_SIZE] = "";
	long		status = 0;
	CURLcode	code;

	(void) curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
	(void) curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
	(void) curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
	(void) curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
	(void) curl_easy_setopt(curl, CURLOPT_HEADERDATA, t);
	code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		return explain(code, curl, t, request, detail, why);
	t->answer->arrived = true;
	(void) curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status < 200 || status > 599)
		return ks_fail(why, KS_MODULE_ERROR, "an answer has no HTTP status");
	t->answer->status = (int) status;
	return KS_OK;
}

KsStatus
aws_http_call(AwsHttp *http, const AwsRequest *request, AwsAnswer *answer, KsFailure *why)
{
	Transfer	t = {.answer = answer};
	int64_t		left = request->until - aws_now();
	struct curl_slist *headers;
	CURL	   *curl;
	bool		made;
	KsStatus	status;

	*answer = (AwsAnswer) {0};
	if (left <= 0)
		return ks_fail(why, KS_TIMEOUT, "the time for a request is over before it began");
	curl = take_handle(http);
	if (curl == NULL)
		return ks_fail(why, KS_MODULE_ERROR, "no memory for a connection");
	headers = make_headers(request, &made);
	if (made && set_safety(http, curl, request) && set_times(curl, request, left) &&
		set_request(curl, request, headers))
		status = perform(curl, request, &t, why);
	else
		status = ks_fail(why, KS_MODULE_ERROR, "libcurl does not take a request");
	if (status != KS_OK)
		aws_text_free(&answer->body);
	give_back(http, curl);
	curl_slist_free_all(headers);
	return status;
}
