/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What C sends: each request is framed, matched, and moved to a backend, to Envoy, or passed to the keeper's relay. */
#ifndef XLB_CLIENT_H
#define XLB_CLIENT_H

#include "xlb_message.h"
#include "xlb_head.h"

/* A message holds 17 pieces and a send may add two: with more of them the application would get ENOSPC. */
#define XLB_MAX_CORKS 7

/* From here on all bytes of C go to A, and the keeper relays them: the connection is Envoy's. */
static __always_inline int xlb_relay(struct sk_msg_md *msg, struct xlb_conn *client, __u32 reason, __u32 redirected)
{
	client->relayed = XLB_RELAYED_EVER;
	client->corked = 0;
	client->in_request = 0;
	xlb_count(client->view, reason);
	xlb_emit(XLB_EV_IRREGULAR, 0, client->self, 0, 0, reason);
	return xlb_pass(msg, client, redirected);
}

/* All bytes of this message go to A, and the framer has walked over them.  TCP may take fewer (a full send buffer),
 * and the application then sends the rest again: the next run sees that by the sequence number. */
static __always_inline int xlb_pass_framed(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					   __u32 size, __u32 redirected)
{
	client->in_request = client->frame.phase != XLB_PHASE_DONE;
	client->expected = tp->write_seq + size;
	return xlb_pass(msg, client, redirected);
}

/* There was no idle connection for this request, and nothing odd about it: the keeper relays this exchange, and after
 * it C is on the kernel's way again. */
static __always_inline int xlb_relay_once(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					  __u32 reason, __u32 size, __u32 redirected)
{
	client->relayed = XLB_RELAYED_ONCE;
	XLB_EXCHANGE(client->owed, 1);
	xlb_count(client->view, reason);
	xlb_emit(XLB_EV_IRREGULAR, 0, client->self, 0, 0, reason);
	return xlb_pass_framed(msg, client, tp, size, redirected);
}

/* The rest of a head may come with the next send: hold back what there is.  User space cannot flush it; a connection
 * that closes frees it. */
static __always_inline int xlb_cork(struct sk_msg_md *msg, struct xlb_conn *client, __u32 size)
{
	if (!client->corked)
		client->corks = 0;
	client->corked = size;
	client->corks++;
	bpf_msg_apply_bytes(msg, 0);
	bpf_msg_cork_bytes(msg, size + 1);
	return SK_PASS;
}

static __always_inline int xlb_may_cork(const struct xlb_conn *client, const struct xlb_scratch *scratch, __u32 size,
					__u32 redirected)
{
	struct xlb_config *config = xlb_get_config();

	/* Never after a redirect in the same sendmsg: the held message would keep a stale pointer to its target. */
	return scratch->head.more && config && size < config->cork_limit && size < XLB_MAX_HEAD && !redirected &&
	       !client->in_flight && client->corks < XLB_MAX_CORKS;
}

/* Take `close` out of the request's connection header, so that the backend keeps the connection.  0, or -1. */
static __always_inline int xlb_blank_close(struct sk_msg_md *msg, __u32 at)
{
	__u8 *data;

	if (at < 1 || at > XLB_MAX_HEAD || bpf_msg_pull_data(msg, at, at + 5, 0))
		return -1;
	data = xlb_data(msg);
	if ((void *)(data + 5) > xlb_data_end(msg))
		return -1;
	data[0] = data[1] = data[2] = data[3] = data[4] = ' ';
	return 0;
}

/* The pool of connections to Envoy for C's view and original destination; 0: there is none yet, the keeper is told. */
static __always_inline __u32 xlb_envoy_pool(struct xlb_conn *client)
{
	struct xlb_destination destination = {};
	__u32 *found;

	destination.original = client->original;
	destination.original_port = client->original_port;
	destination.view = client->view;
	found = bpf_map_lookup_elem(&xlb_destinations, &destination);
	if (!found)
		xlb_emit(XLB_EV_DESTINATION, 0, client->self, 0, 0, 0);
	return found ? *found : 0;
}

/* The pool to take the request to: an endpoint's, or with a reason Envoy's; 0: there is none, relay. */
static __always_inline __u32 xlb_route(struct xlb_conn *client, struct xlb_scratch *scratch, void *image, __u32 *reason)
{
	struct xlb_decision decision = {};
	struct xlb_cluster *cluster;
	struct xlb_pool_state *state;
	__u32 pool;

	if (!image) {
		*reason = XLB_REASON_NO_IMAGE;
	} else {
		xlb_match(image, scratch, bpf_get_prandom_u32(), &decision);
		*reason = decision.reason;
	}
	if (!*reason) {
		cluster = bpf_map_lookup_elem(image, &decision.cluster);
		pool = cluster ? xlb_balance(image, cluster) : 0;
		state = pool ? xlb_get_pool_state(pool) : NULL;
		if (state && !(state->flags & XLB_POOL_REMOTE))
			return pool;
		*reason = state ? XLB_REASON_ENDPOINT_NOT_LOCAL : XLB_REASON_NO_HEALTHY_ENDPOINT;
		if (state)
			__sync_fetch_and_add(&state->empty, 1);
	}
	return xlb_envoy_pool(client);
}

static __always_inline struct xlb_conn *xlb_pop_or_tell(__u32 pool, __u64 client)
{
	struct xlb_conn *backend = xlb_pop(pool);
	struct xlb_pool_state *state;

	if (!backend) {
		state = xlb_get_pool_state(pool);
		if (state)
			__sync_fetch_and_add(&state->empty, 1);
		xlb_emit(XLB_EV_POOL_EMPTY, pool, client, 0, 0, 0);
	}
	return backend;
}

/* A whole head is in scratch, parsed.  Decides, takes a connection and redirects. */
static __always_inline int xlb_new_request(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					   struct xlb_scratch *scratch, void *image, __u32 size, __u32 redirected,
					   __u32 corked)
{
	struct xlb_head *head = &scratch->head;
	__u32 reason = 0, pool, end, close_at;
	struct xlb_conn *backend;
	__u64 to;

	client->head = head->is_head;
	pool = xlb_route(client, scratch, image, &reason);
	/* The head is not needed any more: the walk uses the same buffer. */
	close_at = head->close ? head->close_at : 0;
	if (head->close && !close_at)
		return xlb_relay(msg, client, reason ?: XLB_REASON_HEAD_INCOMPLETE, redirected);
	client->frame.flags = 0;
	client->frame.column = 0;
	client->frame.rest = head->length;
	client->frame.phase = head->chunked			 ? XLB_PHASE_CHUNK_SIZE
			      : head->has_length && head->length ? XLB_PHASE_BODY
								 : XLB_PHASE_DONE;
	end = head->head_len;
	if (client->frame.phase != XLB_PHASE_DONE)
		end = xlb_walk(msg, scratch, &client->frame, size, end, 0, 0);
	if (client->frame.phase == XLB_PHASE_ERROR || end > size)
		return xlb_relay(msg, client, XLB_REASON_TRANSFER_CODING, redirected);
	if (corked && end < size)
		/* The kernel frees what a redirect leaves of a corked message. */
		return xlb_relay(msg, client, XLB_REASON_PIPELINED, redirected);
	backend = !pool ? NULL : xlb_pop_or_tell(pool, client->self);
	if (!backend && !reason) {
		reason = XLB_REASON_POOL_EMPTY;
		pool = xlb_envoy_pool(client);
		if (pool)
			backend = xlb_pop_or_tell(pool, client->self);
	}
	if (!backend && (close_at || end < size))
		return xlb_relay(msg, client, reason, redirected);
	if (!backend)
		return xlb_relay_once(msg, client, tp, reason, size, redirected);
	xlb_begin(client, backend);
	to = backend->self;
	bpf_msg_apply_bytes(msg, end < size ? end : 0);
	if (bpf_msg_redirect_hash(msg, &xlb_sockets, &to, BPF_F_INGRESS) != SK_PASS ||
	    (close_at && xlb_blank_close(msg, close_at))) {
		/* B left the map between pop and redirect. */
		client->peer = 0;
		client->in_flight = 0;
		if (xlb_take_end(backend)) {
			backend->peer = 0;
			xlb_retire_from(backend, XLB_BUSY);
		}
		return xlb_relay(msg, client, XLB_REASON_REDIRECT_FAILED, 1);
	}
	if (close_at) {
		client->closing |= XLB_CLOSING_CLIENT;
		backend->close_header = 1;
	}
	XLB_EXCHANGE(client->in_request, client->frame.phase != XLB_PHASE_DONE);
	client->redirected = end < size;
	xlb_count(client->view, reason);
	return SK_PASS;
}

static __always_inline int xlb_client_head(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					   __u32 redirected)
{
	struct xlb_scratch *scratch;
	__u32 size = xlb_size_of(msg), slot = client->image, zero = 0, corked = client->corked;
	struct xlb_image_header *header = NULL;
	void *image;
	int verdict;

	/* What follows `close` is not for anybody, and so not for Envoy: see below. */
	if (client->leave && !xlb_is_closing(client))
		return xlb_relay(msg, client, XLB_REASON_BYPASSED, redirected);
	scratch = xlb_take_scratch();
	if (!scratch)
		return xlb_relay(msg, client, XLB_REASON_NO_STATE, redirected);
	client->corked = 0;
	image = bpf_map_lookup_elem(&xlb_images, &slot);
	if (image)
		header = bpf_map_lookup_elem(image, &zero);
	scratch->seed = header ? header->seed : 0;
	scratch->size = size < XLB_MAX_HEAD ? size : XLB_MAX_HEAD;
	if (xlb_read(msg, scratch, 0, scratch->size)) {
		verdict = xlb_relay(msg, client, XLB_REASON_NO_STATE, redirected);
		goto out;
	}
	xlb_parse_head(scratch);
	if (!scratch->head.complete && xlb_may_cork(client, scratch, size, redirected)) {
		verdict = xlb_cork(msg, client, size);
		goto out;
	}
	client->corks = 0;
	if (scratch->head.relay || !scratch->head.complete)
		verdict = xlb_relay(msg, client, scratch->head.reason ?: XLB_REASON_HEAD_INCOMPLETE, redirected);
	else if (client->in_flight)
		verdict = xlb_relay(msg, client, XLB_REASON_PIPELINED, redirected);
	else if (xlb_is_closing(client))
		verdict = xlb_pass(msg, client, redirected); /* A is about to end */
	else
		verdict = xlb_new_request(msg, client, tp, scratch, image, size, redirected, corked);
out:
	xlb_give_scratch(scratch);
	return verdict;
}

/* More of a request's body, for the B that has its head. */
static __always_inline int xlb_client_body(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					   __u32 redirected)
{
	__u32 size = xlb_size_of(msg), end;
	struct xlb_config *config = xlb_get_config();
	struct xlb_conn *backend;
	__u64 to = client->peer;

	backend = to ? xlb_get_conn(to) : NULL;
	if (!backend || backend->peer != client->self) {
		/* B has ended, with an early answer or without: the keeper ends A, and C sees that. */
		client->relayed = XLB_RELAYED_EVER;
		return xlb_pass(msg, client, redirected);
	}
	if (config && config->upload_limit && xlb_queued(backend) + size > config->upload_limit) {
		/* Before a byte of this piece is looked at: the keeper goes on from the framer's state. */
		client->upload_seq = tp->write_seq;
		client->upload_busy = 1;
		XLB_EXCHANGE(client->upload, 1);
		xlb_emit(XLB_EV_UPLOAD, backend->pool, client->self, to, backend->alt, 0);
		return xlb_pass(msg, client, redirected);
	}
	if (client->frame.phase == XLB_PHASE_BODY)
		end = xlb_frame_skip(&client->frame, size);
	else
		end = xlb_walk_message(msg, &client->frame, size, 0, 0);
	if (client->frame.phase == XLB_PHASE_ERROR || end < 1 || end > size) {
		/* Not chunked as it said: B waits for a body that will not come.  End both. */
		client->relayed = XLB_RELAYED_EVER;
		client->in_request = 0;
		xlb_end_malformed(backend, client, 1);
		return xlb_pass(msg, client, redirected);
	}
	bpf_msg_apply_bytes(msg, end < size ? end : 0);
	client->redirected = end < size;
	if (client->frame.phase == XLB_PHASE_DONE) {
		XLB_EXCHANGE(client->in_request, 0);
		if (backend->response_done)
			xlb_finish(backend, client);
	}
	if (bpf_msg_redirect_hash(msg, &xlb_sockets, &to, BPF_F_INGRESS) == SK_PASS)
		return SK_PASS;
	client->relayed = XLB_RELAYED_EVER;
	return xlb_pass(msg, client, redirected);
}

/* More of C while an exchange is relayed. */
static __always_inline int xlb_client_relayed(struct sk_msg_md *msg, struct xlb_conn *client, struct tcp_sock *tp,
					      __u32 redirected)
{
	__u32 size = xlb_size_of(msg), end;

	if (!client->in_request)
		return xlb_relay(msg, client, XLB_REASON_PIPELINED, redirected);
	end = xlb_walk_message(msg, &client->frame, size, 0, 0);
	if (client->frame.phase == XLB_PHASE_ERROR || end != size)
		return xlb_relay(msg, client, XLB_REASON_PIPELINED, redirected);
	return xlb_pass_framed(msg, client, tp, size, redirected);
}

static __always_inline int xlb_client(struct sk_msg_md *msg, struct xlb_conn *client, struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 redirected = client->redirected;

	client->redirected = 0;
	bpf_msg_cork_bytes(msg, 0); /* else the old value stays in the message */
	if (!tp)
		return xlb_pass(msg, client, redirected);
	if (client->relayed == XLB_RELAYED_EVER) {
		xlb_count(client->view, client->leave ? XLB_REASON_BYPASSED : XLB_REASON_CONNECTION_RELAYED);
		return xlb_pass(msg, client, redirected);
	}
	if (client->upload)
		return xlb_pass(msg, client, redirected);
	/* Bytes have gone to TCP that the program did not see, so the position in the stream is not certain. */
	if (tp->write_seq != client->expected)
		return xlb_relay(msg, client, XLB_REASON_PARTIAL_WRITE, redirected);
	if (client->relayed) {
		if (client->in_request || client->owed)
			return xlb_client_relayed(msg, client, tp, redirected);
		client->relayed = XLB_RELAYED_NOT;
	}
	if (client->in_request)
		return xlb_client_body(msg, client, tp, redirected);
	return xlb_client_head(msg, client, tp, redirected);
}

#endif
