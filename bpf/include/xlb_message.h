/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What both directions do with a message: let it pass, and walk over it with the framer. */
#ifndef XLB_MESSAGE_H
#define XLB_MESSAGE_H

#include "xlb_exchange.h"
#include "xlb_frame.h"

#define XLB_MAX_SEGMENTS 64 /* pieces looked at in one run; what is left makes the program run again */
#define XLB_HEAD_SEGMENT 2048
#define XLB_CHUNK_SEGMENT 32 /* a chunk-size line is short, and what follows need not be read */

/* The context is read by instructions of our own: clang would else form pointers into it, which are refused. */
static __always_inline __u32 xlb_size_of(struct sk_msg_md *msg)
{
	__u32 size;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(size) : "r"(msg), "i"(__builtin_offsetof(struct sk_msg_md, size)));
	return size;
}

static __always_inline void *xlb_data(struct sk_msg_md *msg)
{
	void *data;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(data) : "r"(msg), "i"(__builtin_offsetof(struct sk_msg_md, data)));
	return data;
}

static __always_inline void *xlb_data_end(struct sk_msg_md *msg)
{
	void *end;

	asm volatile("%0 = *(u64 *)(%1 + %2)"
		     : "=r"(end)
		     : "r"(msg), "i"(__builtin_offsetof(struct sk_msg_md, data_end)));
	return end;
}

/* Let the message go its TCP way.  After a redirect within the same sendmsg the kernel would repeat that (sk_redir
 * outlives a verdict, net/core/skmsg.c), so "pass" must then be a redirect to oneself. */
static __always_inline int xlb_pass(struct sk_msg_md *msg, const struct xlb_conn *conn, __u32 redirected)
{
	__u64 self = conn->self;

	bpf_msg_apply_bytes(msg, 0);
	if (redirected)
		return bpf_msg_redirect_hash(msg, &xlb_sockets, &self, 0);
	return SK_PASS;
}

/* Copy message[from, from + size) to scratch->buf.  0, or -1. */
static __always_inline int xlb_read(struct sk_msg_md *msg, struct xlb_scratch *scratch, __u32 from, __u32 size)
{
	void *data;

	asm volatile("" : "+r"(size));
	if (size < 1 || size > XLB_MAX_HEAD)
		return -1;
	if (from || xlb_data_end(msg) - xlb_data(msg) < size) {
		if (bpf_msg_pull_data(msg, from, from + size, 0))
			return -1;
	}
	data = xlb_data(msg);
	if (data + 1 > xlb_data_end(msg))
		return -1;
	return bpf_probe_read_kernel(scratch->buf, size, data) ? -1 : 0;
}

struct xlb_walk {
	struct sk_msg_md *msg;
	struct xlb_scratch *scratch;
	struct xlb_frame *frame;
	__u32 size;
	__u32 offset;
	__u32 response;
	__u32 head; /* the request's method was HEAD */
};

static long xlb_walk_segment(__u32 index, struct xlb_walk *walk)
{
	struct xlb_frame *frame = walk->frame;
	__u32 left = walk->size - walk->offset;
	__u32 take;

	if (!left || walk->offset > walk->size || frame->phase == XLB_PHASE_DONE || frame->phase == XLB_PHASE_ERROR)
		return 1;
	take = xlb_frame_skip(frame, left);
	if (take) {
		walk->offset += take;
		return 0;
	}
	take = frame->phase == XLB_PHASE_CHUNK_SIZE || frame->phase == XLB_PHASE_CHUNK ? XLB_CHUNK_SEGMENT
										       : XLB_HEAD_SEGMENT;
	if (take > left)
		take = left;
	if (xlb_read(walk->msg, walk->scratch, walk->offset, take)) {
		frame->phase = XLB_PHASE_ERROR;
		return 1;
	}
	walk->offset += xlb_frame_feed(frame, walk->scratch->buf, take, walk->response, walk->head);
	return 0;
}

enum xlb_walk_flags {
	XLB_WALK_RESPONSE = 1,
	XLB_WALK_HEAD = 2, /* the request's method was HEAD */
};

/* Walk over message[offset, size): where the HTTP message in progress ends, or the size; frame->phase tells which.
 * A global function, so that the verifier checks it once and not for each caller.
 * span: offset << 32 | size. */
__noinline __u32 xlb_walk_span(struct sk_msg_md *msg, struct xlb_scratch *scratch, struct xlb_frame *frame, __u64 span,
			       __u32 flags)
{
	struct xlb_walk walk = {
		.msg = msg,
		.scratch = scratch,
		.frame = frame,
		.size = (__u32)span,
		.offset = span >> 32,
		.response = flags & XLB_WALK_RESPONSE,
		.head = !!(flags & XLB_WALK_HEAD),
	};

	if (!scratch || !frame)
		return 0;
	bpf_loop(XLB_MAX_SEGMENTS, xlb_walk_segment, &walk, 0);
	return walk.offset;
}

static __always_inline __u32 xlb_walk(struct sk_msg_md *msg, struct xlb_scratch *scratch, struct xlb_frame *frame,
				      __u32 size, __u32 offset, __u32 response, __u32 head)
{
	return xlb_walk_span(msg, scratch, frame, (__u64)offset << 32 | size,
			     (response ? XLB_WALK_RESPONSE : 0) | (head ? XLB_WALK_HEAD : 0));
}

/* The same from the beginning of a message, in a work space of its own; 0 if there is none left. */
static __always_inline __u32 xlb_walk_message(struct sk_msg_md *msg, struct xlb_frame *frame, __u32 size,
					      __u32 response, __u32 head)
{
	struct xlb_scratch *scratch = xlb_take_scratch();
	__u32 end;

	if (!scratch)
		return 0;
	end = xlb_walk(msg, scratch, frame, size, 0, response, head);
	xlb_give_scratch(scratch);
	return end;
}

#endif
