/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* connect(2) of a workload: is the destination captured, and who takes it? */
#ifndef XLB_CONNECT_H
#define XLB_CONNECT_H

#include "xlb_kernel.h"

/* The capture of a destination: its own, else any address on the port, else any port; NULL if there is none. */
static __always_inline struct xlb_capture *xlb_find_capture(__u32 view, const struct xlb_address *address, __u16 port)
{
	struct xlb_capture_key key = { .address = *address, .port = port };
	struct xlb_capture *found;
	void *captures = bpf_map_lookup_elem(&xlb_captures, &view);

	if (!captures)
		return NULL;
	found = bpf_map_lookup_elem(captures, &key);
	if (found)
		return found;
	if (xlb_is_ip4(address))
		xlb_map_ip4(&key.address, 0);
	else
		__builtin_memset(&key.address, 0, sizeof(key.address));
	found = bpf_map_lookup_elem(captures, &key);
	if (found)
		return found;
	key.port = 0;
	return bpf_map_lookup_elem(captures, &key);
}

static __always_inline __u32 xlb_switch(__u32 workload, __u32 port)
{
	struct xlb_switch_key key = { .workload = workload, .port = port };
	__u32 *found = bpf_map_lookup_elem(&xlb_switches, &key);

	return found ? *found : 0;
}

/* How a captured connection is to be taken, enum xlb_capture_kind: annotations of the workload first, as Istio's
 * iptables rules have them (excluded port, excluded range, included port, included range), then bypasses. */
static __noinline __u32 xlb_switched(__u32 workload, const struct xlb_address *address, __u32 port, __u32 kind)
{
	__u32 at_port, anywhere, bypass;

	if (!address)
		return kind;
	at_port = xlb_switch(workload, port);
	anywhere = xlb_switch(workload, 0);
	if ((at_port | anywhere) & XLB_SWITCH_EXCLUDED)
		return XLB_CAPTURE_NONE;
	if (anywhere & XLB_SWITCH_RANGES) {
		struct xlb_range_key key = { .bits = 160, .workload = workload, .address = *address };
		__u32 *range = bpf_map_lookup_elem(&xlb_ranges, &key);
		__u32 least = at_port & XLB_SWITCH_INCLUDED ? XLB_RANGE_NEITHER : XLB_RANGE_INCLUDED;

		if (range && *range < least)
			return XLB_CAPTURE_NONE;
	}
	bypass = at_port & (XLB_SWITCH_DIRECT | XLB_SWITCH_ENVOY);
	if (!bypass)
		bypass = anywhere & (XLB_SWITCH_DIRECT | XLB_SWITCH_ENVOY);
	if (!bypass)
		bypass = xlb_switch(0, port);
	if (bypass & XLB_SWITCH_DIRECT)
		return XLB_CAPTURE_NONE;
	return bypass & XLB_SWITCH_ENVOY ? XLB_CAPTURE_ENVOY : kind;
}

/* Whether the keeper listens where it said: a dead keeper must mean plain TCP, never a black hole. */
static __always_inline int xlb_keeper_listens(struct bpf_sock_addr *ctx, const struct xlb_config *config, int ip6)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	int listens;

	if (ip6) {
		if (!config->keeper_port6)
			return 0;
		tuple.ipv6.daddr[3] = bpf_htonl(1);
		tuple.ipv6.dport = bpf_htons(config->keeper_port6);
		found = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		if (!config->keeper_port)
			return 0;
		__builtin_memcpy(&tuple.ipv4.daddr, &config->keeper_address.b[12], 4);
		tuple.ipv4.dport = bpf_htons(config->keeper_port);
		found = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!found)
		return 0;
	listens = found->state == BPF_TCP_LISTEN;
	bpf_sk_release(found);
	return listens;
}

/* Where to connect instead; 0 in `port`: as the application says. */
struct xlb_target {
	struct xlb_address address;
	__u16 port; /* host byte order */
};

static __always_inline void xlb_redirect_connect(struct bpf_sock_addr *ctx, const struct xlb_address *address,
						 __u16 port, struct xlb_target *target)
{
	struct xlb_config *config = xlb_get_config();
	struct xlb_workload *workload;
	struct xlb_capture *capture;
	struct xlb_shared *shared;
	struct xlb_own *own;
	__u32 view, kind;
	__u64 group;
	int ip6;

	target->port = 0;
	if (!config || ctx->type != XLB_SOCK_STREAM || ctx->protocol != XLB_IPPROTO_TCP)
		return;
	group = bpf_get_current_ancestor_cgroup_id(config->cgroup_level);
	workload = bpf_map_lookup_elem(&xlb_workloads, &group);
	if (!workload)
		return;
	view = workload->view;
	capture = xlb_find_capture(view, address, port);
	if (!capture)
		return;
	kind = capture->kind;
	shared = xlb_get_shared();
	if (kind != XLB_CAPTURE_NONE && shared && shared->switches)
		kind = xlb_switched(workload->id, address, port, kind);
	if (kind == XLB_CAPTURE_NONE)
		return;
	ip6 = !xlb_is_ip4(address);
	if (kind == XLB_CAPTURE_MIXED && !xlb_keeper_listens(ctx, config, ip6))
		return;
	if (!ctx->sk)
		return;
	own = bpf_sk_storage_get(&xlb_sockets_own, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!own)
		return;
	own->cookie = 0;
	own->pool = 0;
	own->view = view;
	own->original = *address;
	own->original_port = port;
	if (kind == XLB_CAPTURE_ENVOY) {
		own->role = XLB_ROLE_DIRECT;
		target->address = capture->envoy_address;
		target->port = capture->envoy_port;
		xlb_count(view, capture->kind == XLB_CAPTURE_ENVOY ? capture->reason : XLB_REASON_BYPASSED);
		return;
	}
	own->role = XLB_ROLE_C;
	own->image = capture->image;
	if (ip6) {
		/* A socket that is IPv6 only cannot reach a mapped address. */
		__builtin_memset(&target->address, 0, sizeof(target->address));
		target->address.b[15] = 1;
		target->port = config->keeper_port6;
	} else {
		target->address = config->keeper_address;
		target->port = config->keeper_port;
	}
}

static __always_inline void xlb_store_ip6(struct bpf_sock_addr *ctx, const struct xlb_address *address, __u16 port)
{
	const __u32 *word = (const __u32 *)address;

	ctx->user_ip6[0] = word[0];
	ctx->user_ip6[1] = word[1];
	ctx->user_ip6[2] = word[2];
	ctx->user_ip6[3] = word[3];
	ctx->user_port = bpf_htons(port);
}

SEC("cgroup/connect4")
int xlb_connect4(struct bpf_sock_addr *ctx)
{
	struct xlb_target target;
	struct xlb_address address;
	__u32 ip4;

	xlb_map_ip4(&address, ctx->user_ip4);
	xlb_redirect_connect(ctx, &address, bpf_ntohs((__u16)ctx->user_port), &target);
	if (target.port) {
		__builtin_memcpy(&ip4, &target.address.b[12], 4);
		ctx->user_ip4 = ip4;
		ctx->user_port = bpf_htons(target.port);
	}
	return 1;
}

/* Java, Go and other dual-stack runtimes connect to IPv4 destinations with AF_INET6 and ::ffff:a.b.c.d. */
SEC("cgroup/connect6")
int xlb_connect6(struct bpf_sock_addr *ctx)
{
	struct xlb_target target;
	struct xlb_address address;
	__u32 *word = (__u32 *)&address;

	word[0] = ctx->user_ip6[0];
	word[1] = ctx->user_ip6[1];
	word[2] = ctx->user_ip6[2];
	word[3] = ctx->user_ip6[3];
	xlb_redirect_connect(ctx, &address, bpf_ntohs((__u16)ctx->user_port), &target);
	if (target.port)
		xlb_store_ip6(ctx, &target.address, target.port);
	return 1;
}

/* getpeername(2) of a captured socket shows what the application dialled. */
static __always_inline struct xlb_own *xlb_captured(struct bpf_sock_addr *ctx)
{
	struct xlb_own *own;

	if (!ctx->sk)
		return NULL;
	own = bpf_sk_storage_get(&xlb_sockets_own, ctx->sk, 0, 0);
	if (!own || (own->role != XLB_ROLE_C && own->role != XLB_ROLE_DIRECT))
		return NULL;
	return own;
}

SEC("cgroup/getpeername4")
int xlb_peername4(struct bpf_sock_addr *ctx)
{
	struct xlb_own *own = xlb_captured(ctx);
	__u32 ip4;

	if (own) {
		__builtin_memcpy(&ip4, &own->original.b[12], 4);
		ctx->user_ip4 = ip4;
		ctx->user_port = bpf_htons(own->original_port);
	}
	return 1;
}

SEC("cgroup/getpeername6")
int xlb_peername6(struct bpf_sock_addr *ctx)
{
	struct xlb_own *own = xlb_captured(ctx);

	if (own)
		xlb_store_ip6(ctx, &own->original, own->original_port);
	return 1;
}

/* Envoy asks an accepted connection for its original destination: that of the C, U or E at the other end. */
SEC("cgroup/getsockopt")
int xlb_sockopt(struct bpf_sockopt *ctx)
{
	struct xlb_pair_key key = {};
	struct bpf_sock *sk = ctx->sk;
	struct xlb_conn *conn;
	void *optval, *end;
	__u64 *cookie;

	if (ctx->optname != XLB_SO_ORIGINAL_DST || (ctx->level != XLB_SOL_IP && ctx->level != XLB_SOL_IPV6) || !sk)
		return 1;
	if (sk->family == XLB_AF_INET) {
		xlb_map_ip4(&key.local, sk->dst_ip4);
		xlb_map_ip4(&key.remote, sk->src_ip4);
	} else {
		__u32 *local = (__u32 *)&key.local, *remote = (__u32 *)&key.remote;

		local[0] = sk->dst_ip6[0];
		local[1] = sk->dst_ip6[1];
		local[2] = sk->dst_ip6[2];
		local[3] = sk->dst_ip6[3];
		remote[0] = sk->src_ip6[0];
		remote[1] = sk->src_ip6[1];
		remote[2] = sk->src_ip6[2];
		remote[3] = sk->src_ip6[3];
	}
	key.local_port = bpf_ntohs(sk->dst_port);
	key.remote_port = sk->src_port;
	if (xlb_is_loopback(&key.remote))
		key.netns = bpf_get_netns_cookie(ctx);
	cookie = bpf_map_lookup_elem(&xlb_pairs, &key);
	if (!cookie)
		return 1;
	conn = xlb_get_conn(*cookie);
	if (!conn || !conn->original_port)
		return 1;
	/* Read before the branches: clang would else form a pointer into the context, which is refused. */
	optval = ctx->optval;
	end = ctx->optval_end;
	asm volatile("" : "+r"(optval), "+r"(end));
	if (xlb_is_ip4(&conn->original)) {
		struct sockaddr_in *address = optval;

		if ((void *)(address + 1) > end)
			return 1;
		address->sin_family = XLB_AF_INET;
		address->sin_port = bpf_htons(conn->original_port);
		__builtin_memcpy(&address->sin_addr, &conn->original.b[12], 4);
		ctx->optlen = sizeof(*address);
	} else {
		struct sockaddr_in6 *address = optval;

		if ((void *)(address + 1) > end)
			return 1;
		address->sin6_family = XLB_AF_INET6;
		address->sin6_port = bpf_htons(conn->original_port);
		address->sin6_flowinfo = 0;
		address->sin6_scope_id = 0;
		__builtin_memcpy(&address->sin6_addr, &conn->original, 16);
		ctx->optlen = sizeof(*address);
	}
	ctx->retval = 0; /* the kernel itself knows of no such option here: there is no NAT */
	return 1;
}

#endif
