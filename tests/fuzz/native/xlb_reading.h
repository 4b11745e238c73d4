/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bytes of a stream read as the data path reads them (xlb_client.h, xlb_message.h): head, then body, in pieces. */
#ifndef XLB_READING_H
#define XLB_READING_H

#include <string.h>

#include "xlb_native.h"
#include "xlb_head.h"
#include "xlb_frame.h"

/* Fields of struct xlb_reading, all __u64: whoever loads this as a library learns them from xlb_reading_fields.
 * `phase` and `rest` are the framer's behind the last byte it took, `end` is the offset of that byte + 1. */
#define XLB_READING(FIELD) \
	FIELD(reason)      \
	FIELD(reason_line) \
	FIELD(relay)       \
	FIELD(complete)    \
	FIELD(more)        \
	FIELD(head_len)    \
	FIELD(method_len)  \
	FIELD(target)      \
	FIELD(target_len)  \
	FIELD(path_len)    \
	FIELD(host)        \
	FIELD(host_len)    \
	FIELD(lines)       \
	FIELD(chunked)     \
	FIELD(has_length)  \
	FIELD(length)      \
	FIELD(is_head)     \
	FIELD(close)       \
	FIELD(close_at)    \
	FIELD(phase)       \
	FIELD(flags)       \
	FIELD(status)      \
	FIELD(rest)        \
	FIELD(end)

#define XLB_READING_MEMBER(name) __u64 name;
struct xlb_reading {
	XLB_READING(XLB_READING_MEMBER)
};

enum xlb_segment {
	XLB_SEGMENT_HEAD = 2048, /* as in xlb_message.h */
	XLB_SEGMENT_CHUNK = 32,
};

/* Bytes to the begin of the buffer; behind them, as far as a reader may look and farther, `behind`. */
static inline void xlb_native_put(struct xlb_scratch *s, const __u8 *bytes, __u32 size, __u8 behind)
{
	__u32 end = size + 2 * XLB_PADDING < sizeof(s->buf) ? size + 2 * XLB_PADDING : sizeof(s->buf);

	memcpy(s->buf, bytes, size);
	memset(s->buf + size, behind, end - size);
}

/* One piece through the framer. */
static inline __u32 xlb_native_feed(struct xlb_scratch *s, struct xlb_frame *f, const __u8 *bytes, __u32 size,
				    __u8 behind, int response, int to_head)
{
	xlb_native_put(s, bytes, size, behind);
	return xlb_frame_feed(f, s->buf, size, response, to_head);
}

/* How many of these bytes belong to the message in progress: xlb_walk_span. */
static inline __u64 xlb_native_walk(struct xlb_scratch *s, struct xlb_frame *f, const __u8 *bytes, __u64 size,
				    int response, int to_head)
{
	__u64 at = 0, take;

	while (at < size && f->phase != XLB_PHASE_DONE && f->phase != XLB_PHASE_ERROR) {
		take = xlb_frame_skip(f, size - at);
		if (!take) {
			take = f->phase == XLB_PHASE_CHUNK_SIZE || f->phase == XLB_PHASE_CHUNK ? XLB_SEGMENT_CHUNK
											       : XLB_SEGMENT_HEAD;
			if (take > size - at)
				take = size - at;
			take = xlb_native_feed(s, f, bytes + at, take, 0, response, to_head);
		}
		at += take;
	}
	return at;
}

/* The framer for what follows a request's head: xlb_new_request. */
static inline struct xlb_frame xlb_native_body(const struct xlb_head *head)
{
	struct xlb_frame f = { 0 };

	f.rest = head->length;
	f.phase = head->chunked			     ? XLB_PHASE_CHUNK_SIZE
		  : head->has_length && head->length ? XLB_PHASE_BODY
						     : XLB_PHASE_DONE;
	return f;
}

/* The head that these bytes begin with into s->head.  What lies behind them in the buffer is `behind`. */
static inline void xlb_native_head(struct xlb_scratch *s, const __u8 *bytes, __u64 size, __u8 behind)
{
	s->size = size < XLB_MAX_HEAD ? size : XLB_MAX_HEAD;
	xlb_native_put(s, bytes, s->size, behind);
	xlb_parse_head(s);
}

#endif
