/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Small things that all programs need: constants that are not in BTF, maps made easy, sockets looked at from afar. */
#ifndef XLB_KERNEL_H
#define XLB_KERNEL_H

#include "xlb_maps.h"
#include "xlb_reasons.h"

/* include/uapi/linux/{socket,in,in6,netfilter_ipv4}.h */
#define XLB_AF_INET 2
#define XLB_AF_INET6 10
#define XLB_SOCK_STREAM 1
#define XLB_IPPROTO_TCP 6
#define XLB_SOL_IP 0
#define XLB_SOL_IPV6 41
#define XLB_SO_ORIGINAL_DST 80
#define XLB_SHUTDOWN_BOTH 3 /* RCV_SHUTDOWN | SEND_SHUTDOWN, include/net/sock.h */

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;

static __always_inline struct xlb_config *xlb_get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&xlb_config, &zero);
}

static __always_inline struct xlb_shared *xlb_get_shared(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&xlb_shared, &zero);
}

static __always_inline struct xlb_conn *xlb_get_conn(__u64 cookie)
{
	return bpf_map_lookup_elem(&xlb_conns, &cookie);
}

static __always_inline void xlb_count(__u32 view, __u32 reason)
{
	__u32 index = view * XLB_MAX_REASONS + (reason & (XLB_MAX_REASONS - 1));
	__u64 *value = bpf_map_lookup_elem(&xlb_counters, &index);

	if (value)
		*value += 1; /* per CPU; a lost increment under preemption would need two programs on one CPU at once */
}

static __always_inline void xlb_emit(__u32 type, __u32 pool, __u64 client, __u64 backend, __u64 upstream, __u32 arg)
{
	struct xlb_event *event = bpf_ringbuf_reserve(&xlb_events, sizeof(*event), 0);

	if (!event) {
		/* The keeper also looks at the state of what it owns, so an event lost is a delay. */
		struct xlb_shared *shared = xlb_get_shared();

		if (shared)
			__sync_fetch_and_add(&shared->lost_events, 1);
		return;
	}
	event->type = type;
	event->pool = pool;
	event->client = client;
	event->backend = backend;
	event->upstream = upstream;
	event->arg = arg;
	event->pad = 0;
	bpf_ringbuf_submit(event, 0);
}

/* The socket of a connection, to read from only; NULL if its memory has become another socket's. */
static __always_inline struct sock *xlb_look_at(const struct xlb_conn *conn)
{
	struct sock *sk = bpf_rdonly_cast((void *)conn->sock, bpf_core_type_id_kernel(struct sock));

	if ((__u64)sk->__sk_common.skc_cookie.counter != conn->self)
		return NULL;
	return sk;
}

/* Bytes (as the kernel accounts them) in a socket's receive queue; 0 for one that is gone. */
static __always_inline __u32 xlb_queued(const struct xlb_conn *conn)
{
	struct sock *sk = xlb_look_at(conn);

	return sk ? (__u32)sk->sk_backlog.rmem_alloc.counter : 0;
}

static __always_inline struct xlb_pool_state *xlb_get_pool_state(__u32 pool)
{
	return bpf_map_lookup_elem(&xlb_pool_state, &pool);
}

static __always_inline int xlb_push_idle(__u32 pool, __u64 cookie)
{
	void *stack = bpf_map_lookup_elem(&xlb_pools, &pool);

	return stack ? bpf_map_push_elem(stack, &cookie, 0) : -1;
}

/* IPv4 as ::ffff:a.b.c.d */
static __always_inline void xlb_map_ip4(struct xlb_address *address, __u32 ip4)
{
	__builtin_memset(address, 0, 12);
	address->b[10] = address->b[11] = 0xff;
	__builtin_memcpy(&address->b[12], &ip4, 4);
}

static __always_inline int xlb_is_ip4(const struct xlb_address *address)
{
	const __u32 *word = (const __u32 *)address;

	return !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);
}

static __always_inline int xlb_is_loopback(const struct xlb_address *address)
{
	const __u32 *word = (const __u32 *)address;

	if (xlb_is_ip4(address))
		return address->b[12] == 127;
	return !word[0] && !word[1] && !word[2] && word[3] == bpf_htonl(1);
}

/* Four scratch buffers a CPU: the mark is taken with an atomic exchange, because a program that was preempted between
 * looking and marking would share its buffer.  All taken: NULL, and the caller leaves the request to the relay. */
static __always_inline struct xlb_scratch *xlb_take_scratch(void)
{
#pragma unroll
	for (__u32 i = 0; i < 4; i++) {
		__u32 key = i;
		struct xlb_scratch *scratch = bpf_map_lookup_elem(&xlb_scratch, &key);

		if (scratch && !__sync_lock_test_and_set(&scratch->busy, 1))
			return scratch;
	}
	return NULL;
}

static __always_inline void xlb_give_scratch(struct xlb_scratch *scratch)
{
	__sync_lock_test_and_set(&scratch->busy, 0);
}

#endif
