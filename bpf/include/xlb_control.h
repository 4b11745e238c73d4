/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the keeper asks of the kernel half.  It changes no state by itself: it would overwrite what the programs write
 * at the same time. */
#ifndef XLB_CONTROL_H
#define XLB_CONTROL_H

#include "xlb_sockops.h"

static __always_inline void xlb_control_queue(struct xlb_request *request)
{
	struct xlb_conn *conn = xlb_get_conn(request->client);
	struct sock *sk = conn ? xlb_look_at(conn) : NULL;

	request->flags = conn ? conn->in_flight : 0;
	request->arg = sk ? (__u32)sk->sk_backlog.rmem_alloc.counter : ~0u;
	request->references = sk ? (__u32)sk->__sk_common.skc_refcnt.refs.counter : 0;
}

static __always_inline void xlb_control_target(struct xlb_request *request)
{
	struct xlb_conn *injector = xlb_get_conn(request->backend);

	request->arg = injector && injector->role == XLB_ROLE_X;
	if (request->arg) {
		injector->in_flight = request->flags & 1;
		injector->peer = request->client;
		__builtin_memset(&injector->frame, 0, sizeof(injector->frame));
	}
}

static __always_inline void xlb_control_take(struct xlb_request *request)
{
	struct xlb_conn *client = xlb_get_conn(request->client);

	request->arg = 0;
	if (client && __sync_val_compare_and_swap(&client->peer, request->backend, 0) == request->backend) {
		client->in_flight = 0;
		client->in_request = 0;
		request->arg = 1;
	}
}

static __always_inline void xlb_control_release(struct xlb_request *request)
{
	struct xlb_conn *client = xlb_get_conn(request->client);
	struct xlb_conn *backend = xlb_get_conn(request->backend);

	if (client && __sync_val_compare_and_swap(&client->peer, request->backend, 0) == request->backend)
		client->in_flight = 0;
	if (!backend || !xlb_take_end(backend))
		return;
	backend->spilled = 0;
	backend->peer = 0;
	if (request->flags & 1)
		xlb_give_back(backend);
	else
		__sync_val_compare_and_swap(&backend->state, XLB_BUSY, XLB_RETIRED);
}

static __always_inline void xlb_control_upload_end(struct xlb_request *request)
{
	struct xlb_conn *client = xlb_get_conn(request->client);
	struct sock *sk = client ? xlb_look_at(client) : NULL;
	__u32 taken = request->arg, sequence;

	request->arg = 0;
	if (!sk)
		return;
	sequence = ((struct tcp_sock *)bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock)))->write_seq;
	if (sequence != client->upload_seq + taken) {
		/* Something is pipelined behind the upload: it is in A, and so must be all that follows. */
		client->relayed = XLB_RELAYED_EVER;
		XLB_EXCHANGE(client->upload, 0);
		return;
	}
	client->expected = sequence;
	client->in_request = 0;
	client->frame.phase = XLB_PHASE_DONE;
	XLB_EXCHANGE(client->upload, 0);
	request->arg = 1;
}

static __always_inline void xlb_control_upload_done(struct xlb_request *request)
{
	struct xlb_conn *client = xlb_get_conn(request->client);
	struct xlb_conn *backend = xlb_get_conn(request->backend);

	if (!client)
		return;
	client->in_request = 0;
	XLB_EXCHANGE(client->upload_busy, 0);
	if (backend && backend->peer == client->self && backend->response_done)
		xlb_finish(backend, client);
}

static __always_inline void xlb_control_retire(struct xlb_request *request)
{
	struct xlb_conn *backend = xlb_get_conn(request->backend);
	__u32 before;

	request->arg = 1;
	if (!backend)
		return;
	before = __sync_val_compare_and_swap(&backend->state, XLB_IDLE, XLB_RETIRED);
	request->arg = before != XLB_BUSY;
	if (before == XLB_BUSY)
		backend->retire = 1;
}

/* Only C's own program knows where a request begins: it reads this then. */
static __always_inline void xlb_control_relay(struct xlb_request *request)
{
	struct xlb_conn *client = xlb_get_conn(request->client);

	request->arg = client && client->role == XLB_ROLE_C;
	if (request->arg)
		XLB_EXCHANGE(client->leave, request->flags & 1);
}

SEC("syscall")
int xlb_control(struct xlb_request *request)
{
	struct xlb_conn *conn;

	switch (request->op) {
	case XLB_OP_QUEUE:
		xlb_control_queue(request);
		return 0;
	case XLB_OP_TARGET:
		xlb_control_target(request);
		return 0;
	case XLB_OP_TAKE:
		xlb_control_take(request);
		return 0;
	case XLB_OP_RELEASE:
		xlb_control_release(request);
		return 0;
	case XLB_OP_UPLOAD_END:
		xlb_control_upload_end(request);
		return 0;
	case XLB_OP_UPLOAD_DONE:
		xlb_control_upload_done(request);
		return 0;
	case XLB_OP_RETIRE:
		xlb_control_retire(request);
		return 0;
	case XLB_OP_RELAY:
		xlb_control_relay(request);
		return 0;
	case XLB_OP_FORGET:
		conn = xlb_get_conn(request->backend);
		if (conn && (conn->role == XLB_ROLE_U || conn->role == XLB_ROLE_B)) {
			if (conn->role == XLB_ROLE_B && conn->state == XLB_BUSY)
				xlb_take_end(conn);
			xlb_drop_conn(conn);
		}
		return 0;
	}
	return -1;
}

#endif
