/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The head of a request, read once from front to back: RFC 9112, and the reasons of `head_reason` in
 * translator/request.py in its order.  What may follow from it is decided by a matcher (xlb_match.h).
 *
 * A NUL behind the last byte stops every scan, so nothing here compares with the size until something has stopped. */
#ifndef XLB_HEAD_H
#define XLB_HEAD_H

#include "xlb_scratch.h"
#include "xlb_reasons.h"

enum {
	XLB_MAX_METHOD = 32,
	XLB_NAME_WORDS = 4,	/* words of a name read in one step */
	XLB_HOST_BLOCK = 32,	/* bytes of a host read in one step */
	XLB_VALUE_WORDS = 16,	/* words of a value read in one step */
	XLB_LENGTH_DIGITS = 19, /* of a content-length; more are beyond 2^62 */
	XLB_HEAD_PARTS = 2,	/* of a head in one step */
	XLB_HEAD_STEPS = 9000,	/* every step reads a byte or goes from one part of a line to the next */
};

#define XLB_MAX_BODY (1ull << 62)

enum xlb_head_at {
	XLB_AT_PATH,
	XLB_AT_QUERY, /* and any other form of target */
	XLB_AT_NAME,
	XLB_AT_BLANKS,
	XLB_AT_VALUE,
	XLB_AT_HOST,
	XLB_AT_PORT,
	XLB_AT_OPTIONS,
};

enum xlb_head_next { XLB_STEP_AGAIN = 0, XLB_STEP_END, XLB_STEP_ON };

struct xlb_head_context {
	struct xlb_scratch *s;
};

/* The byte at an offset; the one behind the last is a NUL.  XLB_PADDING more can be read from there. */
static __always_inline const __u8 *xlb_head_at(const struct xlb_scratch *s, __u32 at)
{
	return s->buf + xlb_at_most(at, XLB_MAX_HEAD);
}

static __always_inline void xlb_head_note(struct xlb_scratch *s, __u32 reason, __u32 line)
{
	if (s->head.reason)
		return;
	s->head.reason = reason;
	s->head.reason_line = line;
}

static __always_inline int xlb_head_stop(struct xlb_scratch *s, __u32 reason, __u32 line)
{
	xlb_head_note(s, reason, line);
	s->head.relay = 1;
	return XLB_STEP_END;
}

/* Something that may not be at this offset: the end of the buffer, or bad syntax. */
static __always_inline int xlb_head_bad(struct xlb_scratch *s, __u32 at, __u32 reason, __u32 line)
{
	if (at < s->size)
		return xlb_head_stop(s, reason, line);
	if (s->size >= XLB_MAX_HEAD)
		return xlb_head_stop(s, XLB_REASON_HEAD_TOO_LONG, line);
	s->head.more = 1;
	return xlb_head_stop(s, XLB_REASON_HEAD_INCOMPLETE, line);
}

/* ---- request line ---------------------------------------------------------------------------------------------- */

/* What Envoy's normalisation looks at in a path: the last 32 characters in two bits each, the newest one lowest: 2 is
 * '/', 1 is '.', 0 any other.  Not 0: a segment that ends with a slash is "." or "..", or is empty. */
static __always_inline __u64 xlb_odd_segments(__u64 path)
{
	__u64 slash = path & 0xaaaaaaaaaaaaaaaaull, dot = path << 1 & 0xaaaaaaaaaaaaaaaaull;

	return slash & (slash >> 2 | (dot >> 2 & (slash >> 4 | (dot >> 4 & slash >> 6))));
}

/* Whether the path ends with a segment "." or "..". */
static __always_inline int xlb_ends_in_dots(__u64 path)
{
	return (path & 0xf) == (2 << 2 | 1) || (path & 0x3f) == (2 << 4 | 1 << 2 | 1);
}

/* From the blank behind the target. */
static __always_inline int xlb_head_version(struct xlb_scratch *s, __u32 at)
{
	const __u8 *p = xlb_head_at(s, at + 1);
	int preface;

	s->head.target_len = at - s->head.target;
	if (xlb_load8(p) == XLB_WORD('H', 'T', 'T', 'P', '/', '1', '.', '1') && p[8] == '\r' && p[9] == '\n') {
		if (!s->head.target_len)
			return xlb_head_stop(s, XLB_REASON_TARGET_FORM, XLB_NONE_LINE);
		s->state.at = at + 11;
		s->state.state = XLB_AT_NAME;
		s->state.begin = at + 11;
		return XLB_STEP_AGAIN;
	}
	if (at + 11 > s->size)
		return xlb_head_bad(s, s->size, 0, XLB_NONE_LINE);
	/* "PRI * HTTP/2.0" is told from other targets that are no path. */
	preface = s->head.method_len == 3 && s->buf[0] == 'P' && s->buf[1] == 'R' && s->buf[2] == 'I';
	if (preface)
		s->head.reason = 0;
	if (xlb_load8(p) == XLB_WORD('H', 'T', 'T', 'P', '/', '1', '.', '1'))
		return xlb_head_stop(s, XLB_REASON_HEADER_SYNTAX, XLB_NONE_LINE);
	return xlb_head_stop(s, XLB_REASON_NOT_HTTP11, XLB_NONE_LINE);
}

/* A byte that is not a plain one of a target. */
static __always_inline int xlb_head_odd_target(struct xlb_scratch *s, __u32 at, __u8 c)
{
	if (c == '\r' || c == '\n')
		return xlb_head_stop(s, XLB_REASON_NOT_HTTP11, XLB_NONE_LINE);
	if (c < ' ' || c == 0x7f)
		return xlb_head_bad(s, at, XLB_REASON_PATH_NORMALIZATION, XLB_NONE_LINE);
	xlb_head_note(s, XLB_REASON_PATH_NORMALIZATION, XLB_NONE_LINE);
	s->state.at = at + 1;
	return XLB_STEP_AGAIN;
}

/* The path from its second byte on: the first is a slash. */
static __always_inline int xlb_head_path(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	__u32 n = at - s->head.target; /* bytes of the path so far */
	const __u8 *p = xlb_head_at(s, at);
	__u64 hash = s->state.hash, path = s->state.path;
	__u64 *running;
	__u32 i;
	__u8 c;

	/* Hashes of more bytes than a key can have are written, but not read. */
	running = s->path_hash + xlb_at_most(n, XLB_RUNNING - XLB_PATH_BLOCK - 1);
	for (i = 0; i < XLB_PATH_BLOCK; i++) {
		__u8 flags;

		c = p[i];
		flags = xlb_chars[c];
		if (!(flags & XLB_CHAR_PATH))
			break;
		hash = xlb_hash_step(hash, c);
		running[i + 1] = hash;
		path = path << 2 | flags >> XLB_CHAR_SEGMENT_SHIFT;
	}
	if (xlb_odd_segments(path))
		xlb_head_note(s, XLB_REASON_PATH_NORMALIZATION, XLB_NONE_LINE);
	s->state.hash = hash;
	s->state.path = path;
	at += i;
	s->state.at = at;
	if (i == XLB_PATH_BLOCK)
		return XLB_STEP_AGAIN;
	c = *xlb_head_at(s, at);
	if (c != ' ' && c != '?')
		return xlb_head_odd_target(s, at, c);
	s->head.path_len = at - s->head.target;
	if (xlb_ends_in_dots(path))
		xlb_head_note(s, XLB_REASON_PATH_NORMALIZATION, XLB_NONE_LINE);
	if (c == ' ')
		return xlb_head_version(s, at);
	s->state.at = at + 1;
	s->state.state = XLB_AT_QUERY;
	return XLB_STEP_AGAIN;
}

static __always_inline int xlb_head_query(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	const __u8 *p = xlb_head_at(s, at);
	__u64 stop = 0;
	__u32 i;
	__u8 c;

	for (i = 0; i < XLB_VALUE_WORDS; i++) {
		stop = xlb_not_query(xlb_load8(p + i * 8));
		if (stop)
			break;
	}
	at += i * 8;
	s->state.at = at;
	if (!stop)
		return XLB_STEP_AGAIN;
	at += xlb_first(stop);
	c = *xlb_head_at(s, at);
	if (c == ' ')
		return xlb_head_version(s, at);
	return xlb_head_odd_target(s, at, c);
}

/* ---- header lines ---------------------------------------------------------------------------------------------- */

/* Behind the empty line: what only all lines together tell. */
static __always_inline int xlb_head_end(struct xlb_scratch *s, __u32 at)
{
	struct xlb_head_state *state = &s->state;
	__u32 lines = s->head.nlines;

	s->head.complete = 1;
	s->head.head_len = at + 2;
	if (state->hosts != 1)
		xlb_head_note(s, XLB_REASON_HOST_HEADER, lines);
	if (state->bad_length || state->lengths > 1 || (state->lengths && state->codings))
		return xlb_head_stop(s, XLB_REASON_AMBIGUOUS_FRAMING, lines);
	if (state->bad_coding || state->codings > 1)
		return xlb_head_stop(s, XLB_REASON_TRANSFER_CODING, lines);
	s->head.has_length = state->lengths;
	s->head.chunked = state->codings;
	return XLB_STEP_END;
}

static __always_inline int xlb_head_name(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	const __u8 *p = xlb_head_at(s, at);
	__u64 stop = 0;
	__u32 i;
	__u8 c;

	if (at == s->state.begin) {
		if (p[0] == '\r' && p[1] == '\n')
			return xlb_head_end(s, at);
		if (p[0] == '\r')
			return xlb_head_bad(s, at + 1, XLB_REASON_HEADER_SYNTAX, s->head.nlines);
		if (s->head.nlines >= XLB_MAX_HEADERS)
			return xlb_head_bad(s, at, XLB_REASON_TOO_MANY_HEADERS, s->head.nlines);
	}
	for (i = 0; i < XLB_NAME_WORDS; i++) {
		stop = xlb_not_name(xlb_load8(p + i * 8));
		if (stop)
			break;
	}
	at += i * 8;
	s->state.at = at;
	if (!stop)
		return XLB_STEP_AGAIN;
	at += xlb_first(stop);
	c = *xlb_head_at(s, at);
	if (c != ':' && (xlb_chars[c] & XLB_CHAR_TOKEN)) {
		s->state.at = at + 1;
		return XLB_STEP_AGAIN;
	}
	if (c != ':' || at == s->state.begin)
		return xlb_head_bad(s, at, XLB_REASON_HEADER_SYNTAX, s->head.nlines);
	s->state.name_len = at - s->state.begin;
	p = xlb_head_at(s, at + 1);
	s->state.at = at + 1;
	s->state.state = XLB_AT_BLANKS;
	/* Nearly always one blank. */
	if (p[0] == ' ' && p[1] > ' ') {
		s->state.at = at + 2;
		s->state.value = at + 2;
		s->state.state = XLB_AT_VALUE;
	}
	return XLB_STEP_ON;
}

static __always_inline int xlb_head_blanks(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	const __u8 *p = xlb_head_at(s, at);
	__u32 i;

	for (i = 0; i < 8; i++)
		if (p[i] != ' ' && p[i] != '\t')
			break;
	s->state.at = at + i;
	if (i == 8)
		return XLB_STEP_AGAIN;
	s->state.value = at + i;
	s->state.state = XLB_AT_VALUE;
	return XLB_STEP_ON;
}

/* An option of a connection header has ended at an offset. */
static __always_inline void xlb_head_option(struct xlb_scratch *s, __u32 at)
{
	struct xlb_head_state *state = &s->state;

	if (state->option_len == 5 && state->option[0] == XLB_WORD('e', 's', 'o', 'l', 'c', 0, 0, 0)) {
		s->head.close = 1;
		if (!s->head.close_at)
			s->head.close_at = state->option_at;
	} else if (state->option_len &&
		   !(state->option_len == 10 && state->option[1] == XLB_WORD('e', 'k', 0, 0, 0, 0, 0, 0) &&
		     state->option[0] == XLB_WORD('e', 'v', 'i', 'l', 'a', '-', 'p', 'e'))) {
		xlb_head_note(s, XLB_REASON_HOP_BY_HOP_HEADER, s->head.nlines);
	}
	state->option_len = 0;
	state->option_blank = 0;
	state->option[0] = 0;
	state->option[1] = 0;
}

/* One byte of a connection header that is not simply `close` or `keep-alive`. */
static __always_inline int xlb_head_options(struct xlb_scratch *s)
{
	struct xlb_head_state *state = &s->state;
	__u32 at = state->at;
	__u8 c = *xlb_head_at(s, at);

	if (at >= state->end || c == ',')
		xlb_head_option(s, at);
	if (at >= state->end) {
		s->head.nlines++;
		state->at = state->next;
		state->state = XLB_AT_NAME;
		return XLB_STEP_AGAIN;
	}
	state->at = at + 1;
	if (c == ',')
		return XLB_STEP_AGAIN;
	if (c == ' ' || c == '\t') {
		state->option_blank = state->option_len;
		return XLB_STEP_AGAIN;
	}
	if (!state->option_len)
		state->option_at = at;
	/* A blank within an option: no option that we know is as long as this makes it. */
	state->option_len += state->option_blank ? XLB_MAX_HEAD : 1;
	state->option[1] = state->option[1] << 8 | state->option[0] >> 56;
	state->option[0] = state->option[0] << 8 | c | 0x20;
	return XLB_STEP_AGAIN;
}

static __always_inline int xlb_head_host_done(struct xlb_scratch *s, int good)
{
	if (!good)
		xlb_head_note(s, XLB_REASON_HOST_HEADER, s->head.nlines);
	s->head.nlines++;
	s->state.at = s->state.next;
	s->state.state = XLB_AT_NAME;
	return XLB_STEP_AGAIN;
}

/* The value of a host header; the byte behind a value is always one that ends these loops. */
static __always_inline int xlb_head_host(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	const __u8 *p = xlb_head_at(s, at);
	__u64 hash = s->state.hash;
	__u32 i;

	for (i = 0; i < XLB_HOST_BLOCK; i++) {
		__u8 c = p[i];
		__u8 flags = xlb_chars[c];

		if (!(flags & XLB_CHAR_HOST))
			break;
		hash = xlb_hash_step(hash, c | (flags & XLB_CHAR_UPPER));
	}
	at += i;
	s->state.at = at;
	s->state.hash = hash;
	if (i == XLB_HOST_BLOCK)
		return XLB_STEP_AGAIN;
	s->head.host_name_len = at - s->head.host;
	s->head.host_name_hash = hash;
	s->head.host_hash = hash;
	if (at == s->head.host)
		return xlb_head_host_done(s, 0);
	if (at == s->state.end)
		return xlb_head_host_done(s, 1);
	if (*xlb_head_at(s, at) != ':')
		return xlb_head_host_done(s, 0);
	s->state.at = at + 1;
	s->state.hash = xlb_hash_step(hash, ':');
	s->state.state = XLB_AT_PORT;
	return XLB_STEP_ON;
}

static __always_inline int xlb_head_port(struct xlb_scratch *s)
{
	__u32 at = s->state.at;
	const __u8 *p = xlb_head_at(s, at);
	__u64 hash = s->state.hash;
	__u32 i;

	for (i = 0; i < 8; i++) {
		__u8 c = p[i];

		if (c < '0' || c > '9')
			break;
		hash = xlb_hash_step(hash, c);
	}
	at += i;
	s->state.at = at;
	s->state.hash = hash;
	if (i == 8)
		return XLB_STEP_AGAIN;
	s->head.host_hash = hash;
	return xlb_head_host_done(s, at == s->state.end && at > s->head.host + s->head.host_name_len + 1);
}

static __always_inline void xlb_head_length(struct xlb_scratch *s, const __u8 *value, __u32 len)
{
	__u64 length = 0;
	__u32 i;

	s->state.lengths++;
	if (!len || len > XLB_LENGTH_DIGITS)
		s->state.bad_length = 1;
	for (i = 0; i < XLB_LENGTH_DIGITS; i++) {
		__u8 c = value[i];

		if (i >= len)
			break;
		if (c < '0' || c > '9')
			s->state.bad_length = 1;
		length = length * 10 + (c & 15);
	}
	if (length > XLB_MAX_BODY)
		s->state.bad_length = 1;
	s->head.length = length;
}

/* What a header of these names means for the request; the line is whole. */
static __always_inline int xlb_head_known(struct xlb_scratch *s, __u32 value_at, __u32 value_len)
{
	const __u8 *name = xlb_head_at(s, s->state.begin);
	const __u8 *value = xlb_head_at(s, value_at);
	__u64 first = xlb_fold(xlb_load8(name));
	__u64 second = xlb_fold(xlb_load8(name + 8));
	__u32 line = s->head.nlines;

	switch (s->state.name_len) {
	case 2:
		if (xlb_first_bytes(first, 2) == XLB_WORD('t', 'e', 0, 0, 0, 0, 0, 0))
			xlb_head_note(s, XLB_REASON_HOP_BY_HOP_HEADER, line);
		break;
	case 4:
		if (xlb_first_bytes(first, 4) != XLB_WORD('h', 'o', 's', 't', 0, 0, 0, 0))
			break;
		s->state.hosts++;
		s->head.host = value_at;
		s->head.host_len = value_len;
		s->state.at = value_at;
		s->state.hash = s->seed;
		s->state.state = XLB_AT_HOST;
		return XLB_STEP_ON;
	case 6:
		if (xlb_first_bytes(first, 6) == XLB_WORD('e', 'x', 'p', 'e', 'c', 't', 0, 0))
			return xlb_head_stop(s, XLB_REASON_EXPECT, line);
		break;
	case 7:
		if (xlb_first_bytes(first, 7) == XLB_WORD('u', 'p', 'g', 'r', 'a', 'd', 'e', 0))
			return xlb_head_stop(s, XLB_REASON_UPGRADE, line);
		break;
	case 10:
		if (first != XLB_WORD('c', 'o', 'n', 'n', 'e', 'c', 't', 'i') ||
		    xlb_first_bytes(second, 2) != XLB_WORD('o', 'n', 0, 0, 0, 0, 0, 0))
			break;
		first = xlb_fold(xlb_load8(value));
		if (value_len == 10 && first == XLB_WORD('k', 'e', 'e', 'p', '-', 'a', 'l', 'i') &&
		    xlb_fold(xlb_load8(value + 2)) == XLB_WORD('e', 'p', '-', 'a', 'l', 'i', 'v', 'e'))
			break;
		if (value_len == 5 && xlb_first_bytes(first, 5) == XLB_WORD('c', 'l', 'o', 's', 'e', 0, 0, 0)) {
			s->head.close = 1;
			if (!s->head.close_at)
				s->head.close_at = value_at;
			break;
		}
		s->state.at = value_at;
		s->state.option_len = 0;
		s->state.option_blank = 0;
		s->state.option[0] = 0;
		s->state.option[1] = 0;
		s->state.state = XLB_AT_OPTIONS;
		return XLB_STEP_AGAIN;
	case 12:
		/* Envoy's isGrpcRequestHeaders minds the case. */
		if (first == XLB_WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
		    xlb_first_bytes(second, 4) == XLB_WORD('t', 'y', 'p', 'e', 0, 0, 0, 0) && value_len >= 16 &&
		    xlb_load8(value) == XLB_WORD('a', 'p', 'p', 'l', 'i', 'c', 'a', 't') &&
		    xlb_load8(value + 8) == XLB_WORD('i', 'o', 'n', '/', 'g', 'r', 'p', 'c'))
			xlb_head_note(s, XLB_REASON_GRPC, line);
		break;
	case 14:
		if (first == XLB_WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
		    xlb_first_bytes(second, 6) == XLB_WORD('l', 'e', 'n', 'g', 't', 'h', 0, 0))
			xlb_head_length(s, value, value_len);
		break;
	case 16:
		if (first == XLB_WORD('p', 'r', 'o', 'x', 'y', '-', 'c', 'o') &&
		    second == XLB_WORD('n', 'n', 'e', 'c', 't', 'i', 'o', 'n'))
			xlb_head_note(s, XLB_REASON_HOP_BY_HOP_HEADER, line);
		break;
	case 17:
		/* Envoy finds no route for a request whose x-forwarded-proto is empty. */
		if (!value_len && first == XLB_WORD('x', '-', 'f', 'o', 'r', 'w', 'a', 'r') &&
		    second == XLB_WORD('d', 'e', 'd', '-', 'p', 'r', 'o', 't') && (name[16] | 0x20) == 'o')
			xlb_head_note(s, XLB_REASON_X_ENVOY_HEADER, line);
		if (first != XLB_WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') ||
		    second != XLB_WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') || (name[16] | 0x20) != 'g')
			break;
		s->state.codings++;
		if (value_len != 7 ||
		    xlb_first_bytes(xlb_fold(xlb_load8(value)), 7) != XLB_WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', 0))
			s->state.bad_coding = 1;
		break;
	case 23:
		/* Who the client is says its certificate alone: Envoy takes the header away. */
		if (first == XLB_WORD('x', '-', 'f', 'o', 'r', 'w', 'a', 'r') &&
		    second == XLB_WORD('d', 'e', 'd', '-', 'c', 'l', 'i', 'e') &&
		    xlb_first_bytes(xlb_fold(xlb_load8(name + 16)), 7) ==
			    XLB_WORD('n', 't', '-', 'c', 'e', 'r', 't', 0))
			xlb_head_note(s, XLB_REASON_X_ENVOY_HEADER, line);
		break;
	}
	if (first == XLB_WORD('x', '-', 'e', 'n', 'v', 'o', 'y', '-') && s->state.name_len >= 8)
		xlb_head_note(s, XLB_REASON_X_ENVOY_HEADER, line);
	s->head.nlines = line + 1;
	return XLB_STEP_AGAIN;
}

struct xlb_trim {
	const struct xlb_scratch *s;
	__u32 begin, end;
};

static long xlb_trim_step(__u32 i, struct xlb_trim *t)
{
	__u8 c = *xlb_head_at(t->s, t->end - 1);

	if (t->end <= t->begin || (c != ' ' && c != '\t'))
		return 1;
	t->end--;
	return 0;
}

static __always_inline int xlb_head_value(struct xlb_scratch *s)
{
	__u32 at = s->state.at, line = s->head.nlines, begin = s->state.value;
	const __u8 *p = xlb_head_at(s, at);
	__u64 stop = 0;
	__u32 i, end;

	for (i = 0; i < XLB_VALUE_WORDS; i++) {
		stop = xlb_controls(xlb_load8(p + i * 8));
		if (stop)
			break;
	}
	at += i * 8;
	s->state.at = at;
	if (!stop)
		return XLB_STEP_AGAIN;
	at += xlb_first(stop);
	p = xlb_head_at(s, at);
	if (p[0] == '\t') {
		s->state.at = at + 1;
		return XLB_STEP_AGAIN;
	}
	if (p[0] != '\r' || p[1] != '\n')
		return xlb_head_bad(s, at + (p[0] == '\r'), XLB_REASON_HEADER_SYNTAX, line);
	if (at + 4 > XLB_MAX_HEAD)
		return xlb_head_stop(s, XLB_REASON_HEAD_TOO_LONG, line);
	end = at;
	p = xlb_head_at(s, at - 1);
	if (p[0] == ' ' || p[0] == '\t') {
		struct xlb_trim trim = { s, begin, end };

		bpf_loop(XLB_MAX_HEAD, xlb_trim_step, &trim, 0);
		end = trim.end;
	}
	if (line >= XLB_MAX_HEADERS)
		return xlb_head_stop(s, XLB_REASON_TOO_MANY_HEADERS, line);
	s->line[line].name = s->state.begin;
	s->line[line].name_len = s->state.name_len;
	s->line[line].value = begin;
	s->line[line].value_len = end - begin;
	s->state.end = end;
	s->state.next = at + 2;
	s->state.at = at + 2;
	s->state.state = XLB_AT_NAME;
	i = xlb_head_known(s, begin, end - begin);
	s->state.begin = at + 2;
	return i;
}

static __always_inline int xlb_head_part(struct xlb_scratch *s)
{
	int next;

	if (s->state.state == XLB_AT_NAME) {
		next = xlb_head_name(s);
		if (next != XLB_STEP_ON)
			return next;
	}
	if (s->state.state == XLB_AT_BLANKS) {
		next = xlb_head_blanks(s);
		if (next != XLB_STEP_ON)
			return next;
	}
	if (s->state.state == XLB_AT_VALUE) {
		next = xlb_head_value(s);
		if (next != XLB_STEP_ON)
			return next;
	}
	if (s->state.state == XLB_AT_HOST) {
		next = xlb_head_host(s);
		if (next != XLB_STEP_ON)
			return next;
	}
	if (s->state.state == XLB_AT_PORT)
		return xlb_head_port(s);
	if (s->state.state == XLB_AT_PATH)
		return xlb_head_path(s);
	if (s->state.state == XLB_AT_QUERY)
		return xlb_head_query(s);
	return xlb_head_options(s);
}

/* Several parts at once, because a call is not cheap on machines that mitigate Spectre at returns. */
static long xlb_head_step(__u32 i, struct xlb_head_context *context)
{
	struct xlb_scratch *s = context->s;
	__u32 k;

	for (k = 0; k < XLB_HEAD_PARTS; k++)
		if (xlb_head_part(s) == XLB_STEP_END)
			return 1;
	return 0;
}

/* Whether Envoy is sure to take the method, from its first 8 bytes and a blank: it answers 400 to most others. */
static __always_inline int xlb_usual_method(__u64 method)
{
	__u64 four = xlb_first_bytes(method, 4), five = xlb_first_bytes(method, 5);

	return four == XLB_WORD('G', 'E', 'T', ' ', 0, 0, 0, 0) || four == XLB_WORD('P', 'U', 'T', ' ', 0, 0, 0, 0) ||
	       five == XLB_WORD('P', 'O', 'S', 'T', ' ', 0, 0, 0) ||
	       five == XLB_WORD('H', 'E', 'A', 'D', ' ', 0, 0, 0) ||
	       xlb_first_bytes(method, 6) == XLB_WORD('P', 'A', 'T', 'C', 'H', ' ', 0, 0) ||
	       xlb_first_bytes(method, 7) == XLB_WORD('D', 'E', 'L', 'E', 'T', 'E', ' ', 0) ||
	       method == XLB_WORD('O', 'P', 'T', 'I', 'O', 'N', 'S', ' ');
}

/* Method and what kind of target follows. */
static __always_inline int xlb_head_begin(struct xlb_scratch *s)
{
	__u64 method;
	__u32 i;

	/* Before the loop, which the verifier follows to each of its ends, and what is behind it from each. */
	s->state.odd_method = !xlb_usual_method(xlb_load8(s->buf));
	if (s->buf[0] < 'A' || s->buf[0] > 'Z')
		return xlb_head_bad(s, 0, XLB_REASON_NOT_HTTP11, XLB_NONE_LINE);
	for (i = 0; i < XLB_MAX_METHOD; i++)
		if (!(xlb_chars[s->buf[i]] & XLB_CHAR_TOKEN))
			break;
	if (i == XLB_MAX_METHOD || s->buf[i] != ' ')
		return xlb_head_bad(s, i, XLB_REASON_HEADER_SYNTAX, XLB_NONE_LINE);
	s->head.method_len = i;
	s->head.target = i + 1;
	method = xlb_load8(s->buf);
	s->head.is_head = xlb_first_bytes(method, 5) == XLB_WORD('H', 'E', 'A', 'D', ' ', 0, 0, 0);
	if (method == XLB_WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', ' '))
		return xlb_head_stop(s, XLB_REASON_UPGRADE, XLB_NONE_LINE);
	if (s->state.odd_method)
		xlb_head_note(s, XLB_REASON_METHOD, XLB_NONE_LINE);
	if (s->buf[i + 1] == '/') {
		s->state.at = i + 2;
		s->state.hash = xlb_hash_step(s->seed, '/');
		s->path_hash[0] = s->seed;
		s->path_hash[1] = s->state.hash;
		s->state.path = 2;
		s->state.state = XLB_AT_PATH;
		return XLB_STEP_ON;
	}
	if (i + 1 == s->size)
		return xlb_head_bad(s, s->size, 0, XLB_NONE_LINE);
	xlb_head_note(s, XLB_REASON_TARGET_FORM, XLB_NONE_LINE);
	s->state.at = i + 1;
	s->state.state = XLB_AT_QUERY;
	return XLB_STEP_ON;
}

/* Reads the head in s->buf into s->head and s->line; s->size and s->seed are set.  Always 0. */
__noinline int xlb_parse_head(struct xlb_scratch *s)
{
	struct xlb_head_context context;

	if (!s)
		return 0;
	__builtin_memset(&s->head, 0, sizeof(s->head));
	s->state.hosts = 0;
	s->state.lengths = 0;
	s->state.bad_length = 0;
	s->state.codings = 0;
	s->state.bad_coding = 0;
	if (s->size > XLB_MAX_HEAD)
		s->size = XLB_MAX_HEAD;
	s->buf[s->size & (XLB_HEAD_MASK | XLB_MAX_HEAD)] = 0;
	if (xlb_head_begin(s) == XLB_STEP_END)
		return 0;
	context.s = s;
	bpf_loop(XLB_HEAD_STEPS, xlb_head_step, &context, 0);
	if (!s->head.complete && !s->head.relay)
		xlb_head_stop(s, XLB_REASON_HEAD_TOO_LONG, s->head.nlines);
	return 0;
}

#endif
