/*
 * stores.h
 *		The keystores that are configured, and the broker's hold on each.
 */
#ifndef NOMP_STORES_H
#define NOMP_STORES_H

#include "helper_link.h"
#include "keyspec.h"
#include "outage.h"

#define MAX_KEYSTORES		4
#define MAX_PIN_STAMP		128

/* One keystore, with a helper of its own.  Private to the broker. */
typedef struct Store
{
	HelperLink	link;
	char	   *uri;			/* empty if the setting is */
	char	   *regions;		/* where its keys may be, as the helper was told */
	int			place;			/* in the settings, from 0 */
	char		serial[KEYSPEC_SERIAL_MAX]; /* its token's; "" until it has said so */
	char		pin_stamp[MAX_PIN_STAMP];	/* of a PIN file that was refused */
	char		canary[KS_MAX_REFERENCE + 1];	/* as its helper called it last, or "" */
	int64		next_start;
	int			max_in_flight;	/* what its helper works on at once */
	bool		forgets_keys;	/* its helper, as the last one said: see protocol.h */
	int			in_flight;		/* sent, not answered */
	int			creating;		/* of these, so many make a KEK */
	int			aside;			/* so many destroy keys beside the others */
	bool		probing;		/* and one asks for the token's serial */
	bool		alone;			/* it is one that goes alone */
	uint64		given_up[KS_MAX_IN_FLIGHT]; /* the helper is at them still; nobody waits */
	int			n_given_up;
	uint64		late_head;		/* the last of them that sets the register's head */
	int64		heard_at;		/* when its helper answered anything last */
	int			check_at;		/* where its background check is, round and round */
	int			check_left;		/* so much of this round is left */
	int			checking;		/* so many of them are under way */
	int			check_failures; /* in a row, each about one key perhaps */
	bool		check_told;		/* in this interval, that one failed */
	bool		ask_serial;		/* when it is idle, though nobody waits */
	Outage		outage;
} Store;

extern void stores_init(void);
extern const char *stores_uri(int place);

/* The broker.  In the order of the settings; the first is always there. */
extern int	stores_count;
extern Store *stores[MAX_KEYSTORES];

/* No longer configured, with something to bring to its end; NULL: none. */
extern Store *stores_leaving[MAX_KEYSTORES];

extern void stores_arrange(bool (*drop) (Store *store));
extern void stores_try_drop(int i, bool (*drop) (Store *store));
extern Store *stores_holder(const char *serial);
extern KsStatus store_ensure_helper(Store *store);
extern void store_stop(Store *store);
extern void store_kill(Store *store);

#endif							/* NOMP_STORES_H */
