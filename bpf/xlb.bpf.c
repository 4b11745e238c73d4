// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The data path: connect hooks, sockops and sk_msg programs.  See "Life of a request" in ARCHITECTURE.md. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "xlb_connect.h"
#include "xlb_sockops.h"
#include "xlb_client.h"
#include "xlb_backend.h"
#include "xlb_control.h"

/* What came back for an exchange that is relayed once: at its end C is on the kernel's way again.  C's program reads
 * `owed` before its next request. */
static __always_inline void xlb_follow_relayed(struct sk_msg_md *msg, struct xlb_conn *injector,
					       struct xlb_conn *client)
{
	__u32 size = xlb_size_of(msg), end = xlb_walk_message(msg, &injector->frame, size, 1, client->head);

	if (end == size && injector->frame.phase != XLB_PHASE_ERROR && injector->frame.phase != XLB_PHASE_TUNNEL) {
		if (injector->frame.phase != XLB_PHASE_DONE)
			return;
		if (!client->in_request && !(injector->frame.flags & XLB_FRAME_CLOSE)) {
			__builtin_memset(&injector->frame, 0, sizeof(injector->frame));
			XLB_EXCHANGE(client->owed, 0);
			return;
		}
	}
	/* An early answer, one that ends the connection, or one that is not understood: C stays with the relay. */
	client->relayed = XLB_RELAYED_EVER;
}

/* What the keeper writes on X goes into the receive queue of its target. */
static __always_inline int xlb_inject(struct sk_msg_md *msg, struct xlb_conn *injector)
{
	struct xlb_conn *target;
	__u64 to = injector->peer;

	if (!to)
		return SK_PASS;
	bpf_msg_apply_bytes(msg, 0);
	target = xlb_get_conn(to);
	if (target && injector->in_flight) {
		/* The last piece of a spilled response: C may send its next request as soon as it has it. */
		target->peer = 0;
		XLB_EXCHANGE(target->in_flight, 0);
		injector->in_flight = 0;
	} else if (target && target->relayed == XLB_RELAYED_ONCE && target->owed) {
		xlb_follow_relayed(msg, injector, target);
	}
	return bpf_msg_redirect_hash(msg, &xlb_sockets, &to, BPF_F_INGRESS);
}

SEC("sk_msg")
int xlb_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct xlb_conn *conn;
	struct xlb_own *own;

	if (!sk)
		return SK_PASS;
	own = bpf_sk_storage_get(&xlb_sockets_own, (void *)sk, 0, 0);
	conn = own ? xlb_get_conn(own->cookie) : NULL;
	if (!conn)
		return SK_PASS;
	switch (conn->role) {
	case XLB_ROLE_C:
		return xlb_client(msg, conn, sk);
	case XLB_ROLE_B:
		return xlb_backend(msg, conn);
	case XLB_ROLE_X:
		return xlb_inject(msg, conn);
	}
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
