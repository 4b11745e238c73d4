/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections as they are established and as they end: who is who, and what is owed to whom. */
#ifndef XLB_SOCKOPS_H
#define XLB_SOCKOPS_H

#include "xlb_exchange.h"

static __always_inline void xlb_endpoints_of(struct bpf_sock_ops *ctx, struct xlb_address *local,
					     struct xlb_address *remote)
{
	if (ctx->family == XLB_AF_INET) {
		xlb_map_ip4(local, ctx->local_ip4);
		xlb_map_ip4(remote, ctx->remote_ip4);
		return;
	}
	__u32 *to = (__u32 *)local;

	to[0] = ctx->local_ip6[0];
	to[1] = ctx->local_ip6[1];
	to[2] = ctx->local_ip6[2];
	to[3] = ctx->local_ip6[3];
	to = (__u32 *)remote;
	to[0] = ctx->remote_ip6[0];
	to[1] = ctx->remote_ip6[1];
	to[2] = ctx->remote_ip6[2];
	to[3] = ctx->remote_ip6[3];
}

/* The key as the connecting side sees it, from either side. */
static __always_inline void xlb_pair_of(struct bpf_sock_ops *ctx, int passive, struct xlb_pair_key *key)
{
	__u16 local_port = ctx->local_port, remote_port = bpf_ntohl(ctx->remote_port);

	__builtin_memset(key, 0, sizeof(*key));
	if (passive) {
		xlb_endpoints_of(ctx, &key->remote, &key->local);
		key->local_port = remote_port;
		key->remote_port = local_port;
	} else {
		xlb_endpoints_of(ctx, &key->local, &key->remote);
		key->local_port = local_port;
		key->remote_port = remote_port;
	}
	if (xlb_is_loopback(&key->remote))
		key->netns = bpf_get_netns_cookie(ctx);
}

/* A value of 240 bytes is too much for the stack beside all else, so it is made in the scratch buffer. */
static __always_inline struct xlb_conn *xlb_new_conn(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
						     const struct xlb_own *own, const struct xlb_pair_key *pair)
{
	struct xlb_scratch *scratch = xlb_take_scratch();
	struct xlb_conn *fresh, *found = NULL;
	struct tcp_sock *tp;
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (!scratch)
		return NULL;
	fresh = (struct xlb_conn *)scratch->buf;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	tp = bpf_skc_to_tcp_sock(sk);
	fresh->self = cookie;
	fresh->sock = (__u64)tp;
	fresh->role = own->role;
	fresh->pool = own->pool;
	fresh->view = own->view;
	fresh->image = own->image;
	fresh->original = own->original;
	fresh->original_port = own->original_port;
	if (pair)
		fresh->pair = *pair;
	if (tp) {
		fresh->expected = tp->write_seq;
		/* Bytes that went with the SYN (TCP fast open) were never seen by sk_msg. */
		fresh->relayed = tp->syn_data ? XLB_RELAYED_EVER : XLB_RELAYED_NOT;
		if (!bpf_map_update_elem(&xlb_conns, &cookie, fresh, BPF_ANY))
			found = xlb_get_conn(cookie);
	}
	xlb_give_scratch(scratch);
	return found;
}

static __always_inline void xlb_drop_conn(struct xlb_conn *conn)
{
	__u64 cookie = conn->self;

	if (conn->pair.remote_port) {
		struct xlb_pair_key key = conn->pair;

		bpf_map_delete_elem(&xlb_pairs, &key);
	}
	bpf_map_delete_elem(&xlb_conns, &cookie);
}

static __always_inline int xlb_active_established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct xlb_own *own = bpf_sk_storage_get(&xlb_sockets_own, sk, 0, 0);
	struct xlb_pair_key key;
	struct xlb_conn *conn;
	__u64 cookie;

	if (!own || own->role == XLB_ROLE_NONE || own->role == XLB_ROLE_B)
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	xlb_pair_of(ctx, 0, &key);
	conn = xlb_new_conn(ctx, sk, own, &key);
	/* Without state C is an ordinary connection to the keeper, which finds no pair and closes it: no worse than a
	 * proxy that is out of memory. */
	if (!conn)
		return 1;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	own->cookie = cookie;
	if (own->role != XLB_ROLE_X && bpf_map_update_elem(&xlb_pairs, &key, &cookie, BPF_ANY))
		conn->pair.remote_port = 0;
	/* State first, socket second: a program must never meet a socket without state. */
	if ((own->role == XLB_ROLE_C || own->role == XLB_ROLE_X) &&
	    bpf_sock_hash_update(ctx, &xlb_sockets, &cookie, BPF_ANY))
		conn->relayed = XLB_RELAYED_EVER;
	return 1;
}

static __always_inline int xlb_passive_established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct xlb_conn *upstream, *conn;
	struct xlb_pair_key key;
	struct xlb_own *own;
	__u64 *other;
	__u64 cookie, alt;

	xlb_pair_of(ctx, 1, &key);
	other = bpf_map_lookup_elem(&xlb_pairs, &key);
	if (!other)
		return 1;
	alt = *other;
	upstream = xlb_get_conn(alt);
	if (!upstream || upstream->role != XLB_ROLE_U)
		return 1;
	own = bpf_sk_storage_get(&xlb_sockets_own, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!own)
		return 1;
	own->role = XLB_ROLE_B;
	own->pool = upstream->pool;
	own->view = upstream->view;
	cookie = bpf_get_socket_cookie(ctx);
	conn = xlb_new_conn(ctx, sk, own, NULL);
	if (!conn)
		return 1;
	conn->alt = alt;
	own->cookie = cookie;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (bpf_sock_hash_update(ctx, &xlb_sockets, &cookie, BPF_ANY)) {
		/* Multipath TCP, or the map is full: U stays without a B, so the keeper takes the endpoint for remote. */
		bpf_map_delete_elem(&xlb_conns, &cookie);
		return 1;
	}
	upstream->alt = cookie;
	if (xlb_push_idle(conn->pool, cookie)) {
		conn->state = XLB_RETIRED;
		xlb_emit(XLB_EV_RETIRE, conn->pool, 0, cookie, alt, 0);
	}
	return 1;
}

static __always_inline void xlb_backend_ends(struct xlb_conn *backend, __u32 state)
{
	__u32 before, flags = 0;
	__u64 peer;

	if (state == BPF_TCP_ESTABLISHED)
		return;
	before = XLB_EXCHANGE(backend->state, XLB_DEAD);
	peer = backend->peer;
	if (before == XLB_BUSY && peer && xlb_take_end(backend)) {
		if (backend->response_bytes)
			flags |= XLB_GONE_STARTED;
		if (backend->frame.phase == XLB_PHASE_UNTIL_CLOSE)
			flags |= XLB_GONE_UNTIL_CLOSE;
		if (backend->spilled)
			flags |= XLB_GONE_SPILLED;
		xlb_emit(XLB_EV_BACKEND_GONE, backend->pool, peer, backend->self, backend->alt, flags);
	}
	/* With a client the entry is still needed, by the keeper, which removes it. */
	if (state == BPF_TCP_CLOSE && !peer)
		xlb_drop_conn(backend);
}

static __always_inline void xlb_client_ends(struct xlb_conn *client, struct bpf_sock *sk, __u32 state)
{
	struct xlb_shared *shared = xlb_get_shared();
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct xlb_conn *backend;
	__u32 shut = 0;
	__u64 peer;

	if (tp)
		shut = tp->inet_conn.icsk_inet.sk.sk_shutdown & XLB_SHUTDOWN_BOTH;
	if (state == BPF_TCP_FIN_WAIT1 && shut != XLB_SHUTDOWN_BOTH && shared &&
	    !(client->closing & XLB_CLOSING_HALF)) {
		client->closing |= XLB_CLOSING_HALF;
		__sync_fetch_and_add(&shared->half_closed, 1);
	}
	if (state == BPF_TCP_CLOSE ||
	    ((state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_LAST_ACK) && shut == XLB_SHUTDOWN_BOTH)) {
		peer = client->peer;
		if (peer && client->in_flight) {
			client->in_flight = 0;
			client->peer = 0;
			backend = xlb_get_conn(peer);
			if (backend && backend->peer == client->self && backend->state == XLB_DEAD) {
				/* B ended first, and the keeper that should have seen to it is gone too. */
				xlb_take_end(backend);
				xlb_drop_conn(backend);
			} else if (backend && backend->peer == client->self && xlb_take_end(backend)) {
				__u32 before = __sync_val_compare_and_swap(&backend->state, XLB_BUSY, XLB_RETIRED);

				backend->peer = 0;
				if (before == XLB_BUSY)
					xlb_emit(XLB_EV_CLIENT_GONE, backend->pool, client->self, peer, backend->alt,
						 0);
			}
		}
	}
	if (state == BPF_TCP_CLOSE) {
		if ((client->closing & XLB_CLOSING_HALF) && shared)
			__sync_fetch_and_add(&shared->half_closed, -1);
		xlb_drop_conn(client);
	}
}

static __always_inline int xlb_state_changes(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct xlb_conn *conn = xlb_get_conn(bpf_get_socket_cookie(ctx));
	__u32 state = ctx->args[1];

	if (!conn)
		return 1;
	if (conn->role == XLB_ROLE_B) {
		xlb_backend_ends(conn, state);
	} else if (conn->role == XLB_ROLE_C) {
		xlb_client_ends(conn, sk, state);
	} else if (state == BPF_TCP_CLOSE) {
		/* A U whose B still owes a response is looked at by the keeper, which removes it. */
		struct xlb_conn *backend = conn->role == XLB_ROLE_U && conn->alt ? xlb_get_conn(conn->alt) : NULL;

		if (!backend || !backend->peer)
			xlb_drop_conn(conn);
	}
	return 1;
}

SEC("sockops")
int xlb_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		return xlb_active_established(ctx, sk);
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		return xlb_passive_established(ctx, sk);
	case BPF_SOCK_OPS_STATE_CB:
		return xlb_state_changes(ctx, sk);
	}
	return 1;
}

#endif
