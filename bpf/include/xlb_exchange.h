/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One exchange: a request of C answered by a B.  How B is taken out of its pool, and how it goes back.
 *
 * C's program (under C's lock) and B's (under B's) run at the same time, and so may the keeper's control program.
 * Whoever ends the exchange takes `finished` with an atomic exchange first, so it ends once. */
#ifndef XLB_EXCHANGE_H
#define XLB_EXCHANGE_H

#include "xlb_kernel.h"
#include "xlb_match.h"

#define XLB_MAX_POPS 8 /* dead connections passed over before a pool counts as empty */
#define XLB_TCP_ESTABLISHED 1
#define XLB_TCP_SYN_RECV 3 /* until the hook that pools a B has returned (net/ipv4/tcp_input.c) */

/* Atomic with a full barrier: a plain store could be reordered after the load of what the other side has done. */
#define XLB_EXCHANGE(where, value) __sync_lock_test_and_set(&(where), (value))

static __always_inline __u32 xlb_pool_at(void *image, const struct xlb_cluster *cluster, __u32 index)
{
	__u32 cell = cluster->pools + index / 16;
	struct xlb_list *list = bpf_map_lookup_elem(image, &cell);

	return list ? list->word[index & 15] : 0;
}

/* Pool of the endpoint that the cluster's policy chooses; 0: none. */
static __always_inline __u32 xlb_balance(void *image, const struct xlb_cluster *cluster)
{
	__u32 n = cluster->endpoints, rr = cluster->rr;
	__u32 first, second;
	__u32 *cursor;

	if (!n)
		return 0;
	if (n == 1)
		return xlb_pool_at(image, cluster, 0);
	if (cluster->lb == XLB_LB_ROUND_ROBIN) {
		cursor = bpf_map_lookup_elem(&xlb_round_robin, &rr);
		return cursor ? xlb_pool_at(image, cluster, __sync_fetch_and_add(cursor, 1) % n) : 0;
	}
	first = xlb_pool_at(image, cluster, bpf_get_prandom_u32() % n);
	if (cluster->lb == XLB_LB_LEAST_REQUEST) {
		/* Two choices, with replacement; the first wins a tie (Envoy, least_request_lb.cc). */
		struct xlb_pool_state *one, *other;

		second = xlb_pool_at(image, cluster, bpf_get_prandom_u32() % n);
		one = xlb_get_pool_state(first);
		other = xlb_get_pool_state(second);
		if (one && other && other->active < one->active)
			return second;
	}
	return first;
}

/* B must not be used again, if it is in `state` still: the keeper closes its U. */
static __always_inline void xlb_retire_from(struct xlb_conn *backend, __u32 state)
{
	if (__sync_val_compare_and_swap(&backend->state, state, XLB_RETIRED) == state)
		xlb_emit(XLB_EV_RETIRE, backend->pool, 0, backend->self, backend->alt, 0);
}

/* After `close` nothing that C says is answered any more (RFC 9112, 9.6). */
static __always_inline int xlb_is_closing(const struct xlb_conn *client)
{
	return client->closing & (XLB_CLOSING_CLIENT | XLB_CLOSING_BACKEND);
}

/* An idle connection of a pool, now busy; NULL if there is none. */
static __always_inline struct xlb_conn *xlb_pop(__u32 pool)
{
	void *stack = bpf_map_lookup_elem(&xlb_pools, &pool);

	if (!stack)
		return NULL;
	for (int i = 0; i < XLB_MAX_POPS; i++) {
		struct xlb_conn *backend;
		struct sock *sk;
		__u64 cookie;

		if (bpf_map_pop_elem(stack, &cookie))
			return NULL;
		backend = xlb_get_conn(cookie);
		if (!backend || __sync_val_compare_and_swap(&backend->state, XLB_IDLE, XLB_BUSY) != XLB_IDLE)
			continue;
		sk = xlb_look_at(backend);
		if (sk &&
		    (sk->__sk_common.skc_state == XLB_TCP_ESTABLISHED || sk->__sk_common.skc_state == XLB_TCP_SYN_RECV))
			return backend;
		xlb_retire_from(backend, XLB_BUSY);
	}
	return NULL;
}

static __always_inline void xlb_begin(struct xlb_conn *client, struct xlb_conn *backend)
{
	struct xlb_pool_state *pool = xlb_get_pool_state(backend->pool);

	__builtin_memset(&backend->frame, 0, sizeof(backend->frame));
	backend->finished = 0;
	backend->response_done = 0;
	backend->response_bytes = 0;
	backend->spilled = 0;
	backend->head = client->head;
	backend->close_header = 0;
	client->upload = 0;
	client->upload_busy = 0;
	client->peer = backend->self;
	client->in_flight = 1;
	backend->peer = client->self;
	if (pool) {
		__sync_fetch_and_add(&pool->active, 1);
		__sync_fetch_and_add(&pool->requests, 1);
	}
}

/* Take the right to end B's exchange; 0: it has ended. */
static __always_inline int xlb_take_end(struct xlb_conn *backend)
{
	struct xlb_pool_state *pool;

	if (XLB_EXCHANGE(backend->finished, 1))
		return 0;
	pool = xlb_get_pool_state(backend->pool);
	if (pool)
		__sync_fetch_and_add(&pool->active, -1);
	return 1;
}

static __always_inline void xlb_give_back(struct xlb_conn *backend)
{
	if (__sync_val_compare_and_swap(&backend->state, XLB_BUSY, XLB_IDLE) != XLB_BUSY)
		return;
	/* The pool is full (or gone): one connection fewer. */
	if (xlb_push_idle(backend->pool, backend->self))
		xlb_retire_from(backend, XLB_IDLE);
}

/* Request and response are complete.  `client` may be NULL. */
static __always_inline void xlb_finish(struct xlb_conn *backend, struct xlb_conn *client)
{
	__u32 close = backend->frame.flags & XLB_FRAME_CLOSE;

	if (!xlb_take_end(backend))
		return;
	if (client) {
		if (close)
			client->closing |= XLB_CLOSING_BACKEND;
		client->peer = 0;
		XLB_EXCHANGE(client->in_flight, 0);
		if (xlb_is_closing(client))
			xlb_emit(XLB_EV_CLOSE, backend->pool, client->self, backend->self, backend->alt, 0);
		else if (client->relayed)
			xlb_emit(XLB_EV_READY, backend->pool, client->self, backend->self, backend->alt, 0);
	}
	backend->peer = 0;
	if (close || backend->retire) {
		xlb_retire_from(backend, XLB_BUSY);
		return;
	}
	xlb_give_back(backend);
}

/* What one of the two sends is not HTTP/1.1 as it said: end the exchange, and the keeper ends both connections.
 * started: bytes of the response are with C, or none may be sent instead. */
static __always_inline void xlb_end_malformed(struct xlb_conn *backend, struct xlb_conn *client, int started)
{
	if (!xlb_take_end(backend))
		return;
	__sync_val_compare_and_swap(&backend->state, XLB_BUSY, XLB_RETIRED);
	xlb_emit(XLB_EV_BACKEND_GONE, backend->pool, client->self, backend->self, backend->alt,
		 XLB_GONE_MALFORMED | (started ? XLB_GONE_STARTED : 0));
}

#endif
