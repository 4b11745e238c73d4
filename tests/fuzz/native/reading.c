/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's parser and framer as a library (tests/fuzz/reading.py).  Not for several threads at once. */
#include "xlb_reading.h"

#define XLB_READING_NAME(name) #name " "
const char xlb_reading_fields[] = XLB_READING(XLB_READING_NAME);
const char *const xlb_reading_phases[] = {
	[XLB_PHASE_START] = "START",	       [XLB_PHASE_NAME] = "NAME",
	[XLB_PHASE_VALUE] = "VALUE",	       [XLB_PHASE_BODY] = "BODY",
	[XLB_PHASE_CHUNK_SIZE] = "CHUNK_SIZE", [XLB_PHASE_CHUNK] = "CHUNK",
	[XLB_PHASE_TRAILER] = "TRAILER",       [XLB_PHASE_UNTIL_CLOSE] = "UNTIL_CLOSE",
	[XLB_PHASE_TUNNEL] = "TUNNEL",	       [XLB_PHASE_DONE] = "DONE",
	[XLB_PHASE_ERROR] = "ERROR",
};
const __u64 xlb_reading_phases_n = sizeof(xlb_reading_phases) / sizeof(*xlb_reading_phases);

static struct xlb_scratch xlb_memory;

static void xlb_put_frame(struct xlb_reading *out, const struct xlb_frame *f, __u64 end)
{
	out->phase = f->phase;
	out->flags = f->flags;
	out->status = f->status;
	out->rest = f->rest;
	out->end = end;
}

/* A request and its body, as far as the bytes go.  Without a whole head, or if it is relayed, `phase` is ERROR. */
void xlb_read_request(const __u8 *bytes, __u64 size, struct xlb_reading *out)
{
	struct xlb_frame f = { .phase = XLB_PHASE_ERROR };
	struct xlb_head head;
	__u64 end = 0;

	memset(out, 0, sizeof(*out));
	xlb_native_head(&xlb_memory, bytes, size, 0);
	head = xlb_memory.head;
	out->reason = head.reason;
	out->reason_line = head.reason_line;
	out->relay = head.relay;
	out->complete = head.complete;
	out->more = head.more;
	out->head_len = head.head_len;
	out->method_len = head.method_len;
	out->target = head.target;
	out->target_len = head.target_len;
	out->path_len = head.path_len;
	out->host = head.host;
	out->host_len = head.host_len;
	out->lines = head.nlines;
	out->chunked = head.chunked;
	out->has_length = head.has_length;
	out->length = head.length;
	out->is_head = head.is_head;
	out->close = head.close;
	out->close_at = head.close_at;
	if (!head.relay && head.complete) {
		f = xlb_native_body(&head);
		end = head.head_len;
		end += xlb_native_walk(&xlb_memory, &f, bytes + end, size - end, 0, 0);
	}
	xlb_put_frame(out, &f, end);
}

/* A response; `to_head`: to a HEAD request. */
void xlb_read_response(const __u8 *bytes, __u64 size, int to_head, struct xlb_reading *out)
{
	struct xlb_frame f = { 0 };
	__u64 end;

	memset(out, 0, sizeof(*out));
	end = xlb_native_walk(&xlb_memory, &f, bytes, size, 1, to_head);
	xlb_put_frame(out, &f, end);
}
