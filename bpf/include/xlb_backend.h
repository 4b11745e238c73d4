/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What B sends: the response is framed and moved into C's receive queue; at its end B goes back to its pool. */
#ifndef XLB_BACKEND_H
#define XLB_BACKEND_H

#include "xlb_message.h"

static const char xlb_close_line[] = "connection: close\r\n";
#define XLB_CLOSE_LINE (sizeof(xlb_close_line) - 1)
#define XLB_STATUS_LINE 128 /* bytes within which its end is looked for */

/* Where the second line of a response begins, if the whole first one of a final response is in scratch; else 0. */
static __always_inline __u32 xlb_second_line(const struct xlb_scratch *scratch, __u32 size)
{
	if (size < 16 || scratch->buf[9] == '1')
		return 0;
	for (__u32 i = 12; i < XLB_STATUS_LINE; i++) {
		if (i + 1 >= size)
			return 0;
		if (scratch->buf[i] == '\n')
			return i + 1;
	}
	return 0;
}

/* Tell the client what it asked for: the backend was not asked (its connection stays), so it does not say it. */
static __always_inline __u32 xlb_add_close(struct sk_msg_md *msg, __u32 at)
{
	__u8 *data;

	if (at < 1 || at > XLB_STATUS_LINE || bpf_msg_push_data(msg, at, XLB_CLOSE_LINE, 0))
		return 0;
	if (bpf_msg_pull_data(msg, at, at + XLB_CLOSE_LINE, 0))
		return 0;
	data = xlb_data(msg);
	if ((void *)(data + XLB_CLOSE_LINE) > xlb_data_end(msg))
		return 0;
	__builtin_memcpy(data, xlb_close_line, XLB_CLOSE_LINE);
	return XLB_CLOSE_LINE;
}

/* B sends something nobody asked for, or what it sends is not HTTP/1.1: it must not be used again. */
static __always_inline int xlb_retire(struct sk_msg_md *msg, struct xlb_conn *backend, __u32 redirected)
{
	xlb_retire_from(backend, XLB_IDLE);
	return xlb_pass(msg, backend, redirected);
}

static __always_inline int xlb_backend(struct sk_msg_md *msg, struct xlb_conn *backend)
{
	__u32 redirected = backend->redirected, size = xlb_size_of(msg), end, line = 0, added = 0;
	struct xlb_config *config = xlb_get_config();
	struct xlb_scratch *scratch;
	struct xlb_conn *client;
	__u64 to = backend->peer;

	backend->redirected = 0;
	if (!to || backend->state != XLB_BUSY)
		return xlb_retire(msg, backend, redirected);
	client = xlb_get_conn(to);
	if (!client || backend->spilled)
		return xlb_pass(msg, backend, redirected);
	if (config && config->response_limit && xlb_queued(client) + size > config->response_limit) {
		backend->spilled = 1;
		xlb_emit(XLB_EV_SPILL, backend->pool, to, backend->self, backend->alt, 0);
		return xlb_pass(msg, backend, redirected);
	}
	if (backend->frame.phase == XLB_PHASE_BODY || backend->frame.phase == XLB_PHASE_UNTIL_CLOSE) {
		end = xlb_frame_skip(&backend->frame, size);
	} else {
		scratch = xlb_take_scratch();
		if (!scratch) {
			backend->spilled = 1;
			xlb_emit(XLB_EV_SPILL, backend->pool, to, backend->self, backend->alt, 0);
			return xlb_pass(msg, backend, redirected);
		}
		if (backend->close_header && backend->frame.phase == XLB_PHASE_START && !backend->frame.column) {
			__u32 some = size < XLB_STATUS_LINE ? size : XLB_STATUS_LINE;

			if (!xlb_read(msg, scratch, 0, some))
				line = xlb_second_line(scratch, some);
		}
		end = xlb_walk(msg, scratch, &backend->frame, size, 0, 1, backend->head);
		xlb_give_scratch(scratch);
	}
	if (backend->frame.phase == XLB_PHASE_ERROR || end < 1 || end > size) {
		xlb_end_malformed(backend, client, !!backend->response_bytes);
		return xlb_pass(msg, backend, redirected);
	}
	backend->response_bytes += end;
	if (end < size && backend->frame.phase == XLB_PHASE_DONE)
		/* More than one response: what comes after it must never reach the next client. */
		backend->retire = 1;
	if (line) {
		added = xlb_add_close(msg, line);
		backend->close_header = 0;
	}
	bpf_msg_apply_bytes(msg, end < size ? end + added : 0);
	backend->redirected = end < size;
	if (backend->frame.phase == XLB_PHASE_DONE) {
		XLB_EXCHANGE(backend->response_done, 1);
		if (!client->upload_busy && !client->in_request)
			xlb_finish(backend, client);
	}
	return bpf_msg_redirect_hash(msg, &xlb_sockets, &to, BPF_F_INGRESS);
}

#endif
