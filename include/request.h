/*
 * request.h
 *		A backend's side of asking the broker, and the slots between them.
 *
 * One slot per PGPROC.  A backend fills its slot, wakes the broker and waits
 * interruptibly.  If it gives up it takes the slot back by raising "serial";
 * the broker's late answer is then nobody's and is wiped.
 */
#ifndef NOMP_REQUEST_H
#define NOMP_REQUEST_H

#include "keyring.h"

#define REQUEST_REASON_MAX	240
#define REQUEST_BODY_MAX	sizeof(UnwrapRequest)	/* the largest */

/* The broker's own copy of what it took: the backend may take its slot back. */
typedef struct TakenRequest
{
	uint64		serial;
	KsOp		op;
	KeystoreRef store;
	uint64		epoch;
	uint32		len;
	union
	{
		uint8		bytes[REQUEST_BODY_MAX];
		UnwrapRequest unwrap;
	}			body;
} TakenRequest;

extern void request_init(void);
extern void request_shmem_request(void);
extern void request_shmem_startup(void);

/* Backends. */
extern KsStatus request_key(const UnwrapRequest *what, uint64 epoch,
							WorkingKey *out, char *reason);
extern KsStatus request_ahead(UnwrapRequest *what, uint64 epoch,
							  WorkingKey *out, char *reason);
extern KsStatus request_keystore(KsOp op, const KeystoreRef *store,
								 const uint8 *body, size_t len,
								 uint8 *answer, size_t size, size_t *answer_len,
								 char *reason);
extern void request_post(KsOp op, const KeystoreRef *store,
						 const uint8 *body, size_t len);

/* For whoever watches. */
extern int	request_num_waiting(void);
extern bool request_broker_running(void);

/* The broker. */
extern int	request_timeout_ms(void);
extern void request_broker_ready(bool ready);
extern bool request_take(int i, TakenRequest *out);
extern bool request_waiting(int i, uint64 serial);
extern void request_answer(int i, uint64 serial, KsStatus status,
						   const char *reason, const uint8 *answer, size_t len,
						   const WorkingKey *key);

#endif							/* NOMP_REQUEST_H */
