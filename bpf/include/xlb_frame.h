/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where messages of a stream end: responses from the status line on, request bodies from behind the head that
 * xlb_parse_head has read.  Fed with pieces of any size; all state is in struct xlb_frame.
 *
 * As strict as RFC 9112 allows, because the next message on a connection belongs to somebody else: what two readers
 * could understand differently is XLB_PHASE_ERROR.  Bare CR and LF, obs-fold, a second content-length, other transfer
 * codings than `chunked` are. */
#ifndef XLB_FRAME_H
#define XLB_FRAME_H

#include "xlb_scratch.h"

/* What was found of the bytes of a line so far: bits of xlb_frame.name. */
enum xlb_frame_name {
	XLB_NAME_LENGTH = 1,
	XLB_NAME_CODING = 2,
	XLB_NAME_CONNECTION = 4,
	XLB_NAME_ALL = 7,
};

/* Bits of xlb_frame.token within the value of a connection header: options that what was read so far begins. */
enum xlb_frame_option {
	XLB_OPTION_CLOSE = 1,
	XLB_OPTION_KEEP_ALIVE = 2,
	XLB_OPTION_BLANK = 4, /* the option has ended, but no comma was there yet */
	XLB_OPTION_ALL = 3,
};

enum xlb_frame_input {
	XLB_FEED_RESPONSE = 1,
	XLB_FEED_TO_HEAD = 2, /* the response to a HEAD request */
};

/* xlb_frame.column.  It counts below these. */
enum xlb_frame_column {
	XLB_COLUMN_STATUS = 12,	   /* START: behind the status code */
	XLB_COLUMN_REASON = 13,	   /* START: within the reason phrase */
	XLB_COLUMN_LONG = 32,	   /* NAME: longer than any name that matters */
	XLB_COLUMN_BEGUN = 1,	   /* VALUE, TRAILER: within the value */
	XLB_COLUMN_ENDED = 2,	   /* VALUE: only blanks may follow */
	XLB_COLUMN_EXTENSION = 64, /* CHUNK_SIZE: behind ';' */
	XLB_COLUMN_BLANK = 65,	   /* CHUNK_SIZE: a blank was behind the size */
	XLB_COLUMN_CR = 128,	   /* the line ends with the next byte, which must be LF */
	XLB_CHUNK_DIGITS = 16,
	XLB_PLAIN_DIGITS = 18, /* of a length that needs no look at its size */
	XLB_FRAME_STEPS = 2 * XLB_MAX_HEAD,
	XLB_FRAME_PARTS = 3,
};

#define XLB_FRAME_MAX (1ull << 62)

static const char xlb_frame_names[3][XLB_COLUMN_LONG] = { "content-length", "transfer-encoding", "connection" };
static const char xlb_frame_options[2][16] = { "close", "keep-alive" };
static const char xlb_frame_version[8] = "HTTP/1.";
static const char xlb_frame_chunked[8] = "chunked";

struct xlb_feed {
	struct xlb_frame *f;
	struct xlb_bytes *in;
};

static __always_inline const __u8 *xlb_feed_at(struct xlb_bytes *in, __u32 at)
{
	return in->b + xlb_at_most(at, XLB_MAX_HEAD);
}

static __always_inline long xlb_frame_error(struct xlb_frame *f)
{
	f->phase = XLB_PHASE_ERROR;
	return 1;
}

static __always_inline void xlb_frame_go(struct xlb_frame *f, __u8 phase, __u32 column)
{
	f->phase = phase;
	f->column = column;
	f->name = XLB_NAME_ALL;
	f->token = 0;
}

/* The empty line behind the header of a response: what follows?  Answers whether the loop ends. */
static __always_inline long xlb_frame_head_end(struct xlb_frame *f, __u32 input)
{
	__u8 flags = f->flags;

	/* RFC 9112, 6.1: a transfer coding in HTTP/1.0 is faulty framing, and so is one beside a length. */
	if ((flags & XLB_FRAME_CHUNKED) && (flags & (XLB_FRAME_LENGTH | XLB_FRAME_HTTP10)))
		return xlb_frame_error(f);
	/* These have no body (RFC 9112, 6.3), and must not say so either (RFC 9110, 8.6): Envoy answers 502. */
	if ((f->status < 200 || f->status == 204) &&
	    ((flags & XLB_FRAME_CHUNKED) || ((flags & XLB_FRAME_LENGTH) && f->rest)))
		return xlb_frame_error(f);
	if (f->status == 101) {
		f->flags = flags | XLB_FRAME_HEAD;
		f->phase = XLB_PHASE_TUNNEL;
		return 1;
	}
	if (f->status < 200) {
		f->flags = 0;
		f->status = 0;
		f->rest = 0;
		xlb_frame_go(f, XLB_PHASE_START, 0);
		return 0;
	}
	if ((flags & XLB_FRAME_HTTP10) && !(flags & XLB_FRAME_KEEP_ALIVE))
		flags |= XLB_FRAME_CLOSE;
	flags |= XLB_FRAME_HEAD;
	f->flags = flags;
	if ((input & XLB_FEED_TO_HEAD) || f->status == 204 || f->status == 304 ||
	    ((flags & XLB_FRAME_LENGTH) && !f->rest)) {
		f->phase = XLB_PHASE_DONE;
		return 1;
	}
	if (flags & XLB_FRAME_CHUNKED) {
		f->rest = 0;
		xlb_frame_go(f, XLB_PHASE_CHUNK_SIZE, 0);
	} else if (flags & XLB_FRAME_LENGTH) {
		f->phase = XLB_PHASE_BODY;
	} else {
		f->flags = flags | XLB_FRAME_CLOSE;
		f->phase = XLB_PHASE_UNTIL_CLOSE;
	}
	return 0;
}

/* Bytes in which only control characters matter: skips to the first but HTAB.  Answers it; 0: none in this block. */
static __always_inline __u8 xlb_frame_text(struct xlb_bytes *in)
{
	const __u8 *p = xlb_feed_at(in, in->at);
	__u64 stop = 0;
	__u32 i;

	for (i = 0; i < 8; i++) {
		stop = xlb_controls(xlb_load8(p + i * 8));
		if (stop)
			break;
	}
	in->at += i * 8;
	if (!stop)
		return 0;
	in->at += xlb_first(stop);
	if (in->at >= in->len)
		return 0;
	/* A NUL is an error as well as any other, and 0 is taken. */
	return *xlb_feed_at(in, in->at) ?: 1;
}

/* ---- status line ------------------------------------------------------------------------------------------------ */
static __always_inline long xlb_frame_start(struct xlb_bytes *in, struct xlb_frame *f)
{
	const __u8 *p = xlb_feed_at(in, in->at);
	__u32 column = f->column;
	__u8 c = *p;

	if (column == 0) {
		f->flags = 0;
		f->status = 0;
		f->rest = 0;
		/* The common case at once; the NUL behind the last byte keeps it from reading on. */
		if (xlb_load8(p) == XLB_WORD('H', 'T', 'T', 'P', '/', '1', '.', '1') && p[8] == ' ' && p[9] > '0' &&
		    p[9] <= '9' && p[10] >= '0' && p[10] <= '9' && p[11] >= '0' && p[11] <= '9') {
			f->status = (p[9] - '0') * 100 + (p[10] - '0') * 10 + (p[11] - '0');
			f->column = XLB_COLUMN_STATUS;
			in->at += 12;
			if (p[12] != ' ')
				return 0;
			column = XLB_COLUMN_REASON;
			f->column = column;
			in->at++;
		}
	}
	if (column == XLB_COLUMN_REASON) {
		c = xlb_frame_text(in);
		if (!c)
			return 0;
		p = xlb_feed_at(in, in->at);
		in->at++;
		if (c == '\t')
			return 0;
		if (c != '\r')
			return xlb_frame_error(f);
		f->column = XLB_COLUMN_CR;
		if (p[1] != '\n' || in->at >= in->len)
			return 0;
		in->at++;
		xlb_frame_go(f, XLB_PHASE_NAME, 0);
		return 0;
	}
	in->at++;
	if (column == XLB_COLUMN_CR) {
		if (c != '\n')
			return xlb_frame_error(f);
		xlb_frame_go(f, XLB_PHASE_NAME, 0);
		return 0;
	}
	f->column = column + 1;
	if (column < 7) {
		if (c != xlb_frame_version[column & 7])
			return xlb_frame_error(f);
	} else if (column == 7) {
		if (c != '0' && c != '1')
			return xlb_frame_error(f);
		if (c == '0')
			f->flags |= XLB_FRAME_HTTP10;
	} else if (column == 8) {
		if (c != ' ')
			return xlb_frame_error(f);
	} else if (column < XLB_COLUMN_STATUS) {
		if (c < '0' + (column == 9) || c > '9')
			return xlb_frame_error(f);
		f->status = f->status * 10 + c - '0';
	} else {
		/* The blank before an empty reason phrase is often left out. */
		if (c == '\r')
			f->column = XLB_COLUMN_CR;
		else if (c != ' ')
			return xlb_frame_error(f);
	}
	return 0;
}

/* ---- header lines ----------------------------------------------------------------------------------------------- */

/* Which of the known names begin like this one, from a first look at a name that is whole in the piece. */
static __always_inline __u32 xlb_frame_name_of(const __u8 *p, __u32 *column)
{
	__u64 first = xlb_fold(xlb_load8(p)), second = xlb_fold(xlb_load8(p + 8));

	if (first == XLB_WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    xlb_first_bytes(second, 6) == XLB_WORD('l', 'e', 'n', 'g', 't', 'h', 0, 0) && p[14] == ':') {
		*column = 14;
		return XLB_NAME_LENGTH;
	}
	if (first == XLB_WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
	    second == XLB_WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') && (p[16] | 0x20) == 'g' && p[17] == ':') {
		*column = 17;
		return XLB_NAME_CODING;
	}
	if (first == XLB_WORD('c', 'o', 'n', 'n', 'e', 'c', 't', 'i') &&
	    xlb_first_bytes(second, 2) == XLB_WORD('o', 'n', 0, 0, 0, 0, 0, 0) && p[10] == ':') {
		*column = 10;
		return XLB_NAME_CONNECTION;
	}
	return 0;
}

/* The colon: what is known of the name decides how the value is read. */
static __always_inline long xlb_frame_colon(struct xlb_frame *f, __u32 name)
{
	f->phase = XLB_PHASE_VALUE;
	f->column = 0;
	f->name = name;
	f->token = name == XLB_NAME_CONNECTION ? XLB_OPTION_ALL : 0;
	if ((name & XLB_NAME_LENGTH) && (f->flags & XLB_FRAME_LENGTH))
		return xlb_frame_error(f);
	if ((name & XLB_NAME_CODING) && (f->flags & XLB_FRAME_CHUNKED))
		return xlb_frame_error(f);
	return 0;
}

static __always_inline long xlb_frame_name(struct xlb_bytes *in, struct xlb_frame *f)
{
	const __u8 *p = xlb_feed_at(in, in->at);
	__u32 column = f->column, alive = f->name, i;
	__u64 stop = 0;
	__u8 c = *p, flags;

	if (column == XLB_COLUMN_CR) {
		in->at++;
		return c == '\n' ? xlb_frame_head_end(f, in->input) : xlb_frame_error(f);
	}
	if (column == 0) {
		if (c == '\r') {
			in->at++;
			f->column = XLB_COLUMN_CR;
			if (p[1] != '\n' || in->at >= in->len)
				return 0;
			in->at++;
			return xlb_frame_head_end(f, in->input);
		}
		if (c == ':')
			return xlb_frame_error(f);
		if (in->at + 18 <= in->len) {
			alive = xlb_frame_name_of(p, &column);
			if (alive) {
				in->at += column + 1;
				return xlb_frame_colon(f, alive);
			}
			column = XLB_COLUMN_LONG;
			f->column = column;
			f->name = 0;
		}
	}
	if (!alive) {
		for (i = 0; i < 4; i++) {
			stop = xlb_not_name(xlb_load8(p + i * 8));
			if (stop)
				break;
		}
		in->at += i * 8;
		f->column = XLB_COLUMN_LONG;
		if (!stop)
			return 0;
		in->at += xlb_first(stop);
		if (in->at >= in->len)
			return 0;
		c = *xlb_feed_at(in, in->at);
		in->at++;
		if (c == ':')
			return xlb_frame_colon(f, 0);
		return xlb_chars[c] & XLB_CHAR_TOKEN ? 0 : xlb_frame_error(f);
	}
	/* Some known name may still become of it: byte by byte. */
	in->at++;
	column &= XLB_COLUMN_LONG - 1;
	if (c == ':') {
		for (i = 0; i < 3; i++)
			if (xlb_frame_names[i][column])
				alive &= ~(1u << i);
		return xlb_frame_colon(f, alive);
	}
	flags = xlb_chars[c];
	if (!(flags & XLB_CHAR_TOKEN))
		return xlb_frame_error(f);
	c |= flags & XLB_CHAR_UPPER;
	for (i = 0; i < 3; i++)
		if (xlb_frame_names[i][column] != c)
			alive &= ~(1u << i);
	f->name = alive;
	f->column = column + 1;
	return 0;
}

static __always_inline void xlb_frame_option_end(struct xlb_frame *f, __u32 column)
{
	__u32 alive = f->token;

	if ((alive & XLB_OPTION_CLOSE) && column == sizeof("close") - 1)
		f->flags |= XLB_FRAME_CLOSE;
	if ((alive & XLB_OPTION_KEEP_ALIVE) && column == sizeof("keep-alive") - 1)
		f->flags |= XLB_FRAME_KEEP_ALIVE;
	f->token = XLB_OPTION_ALL;
	f->column = 0;
}

/* One byte of the value of a connection header; column counts those of the option. */
static __always_inline void xlb_frame_connection(struct xlb_frame *f, __u8 c)
{
	__u32 column = f->column & (XLB_COLUMN_LONG - 1), alive = f->token;

	if (c == ',') {
		xlb_frame_option_end(f, column);
		return;
	}
	if (c == ' ' || c == '\t') {
		if (column)
			f->token = alive | XLB_OPTION_BLANK;
		return;
	}
	c |= xlb_chars[c] & XLB_CHAR_UPPER;
	if ((alive & XLB_OPTION_BLANK) || xlb_frame_options[0][column & 15] != c)
		alive &= ~XLB_OPTION_CLOSE;
	if ((alive & XLB_OPTION_BLANK) || xlb_frame_options[1][column & 15] != c)
		alive &= ~XLB_OPTION_KEEP_ALIVE;
	f->token = alive;
	f->column = column < 16 ? column + 1 : 16;
}

/* One byte of a content-length or transfer-encoding: a single word with blanks around it.  Answers 0 if it may not be. */
static __always_inline int xlb_frame_word(struct xlb_frame *f, __u8 c)
{
	if (c == ' ' || c == '\t') {
		if (f->column == XLB_COLUMN_BEGUN)
			f->column = XLB_COLUMN_ENDED;
		return 1;
	}
	if (f->column == XLB_COLUMN_ENDED)
		return 0;
	f->column = XLB_COLUMN_BEGUN;
	if (f->name & XLB_NAME_CODING) {
		c |= xlb_chars[c] & XLB_CHAR_UPPER;
		if (f->token >= 7 || c != xlb_frame_chunked[f->token & 7])
			return 0;
		f->token++;
		return 1;
	}
	if (c < '0' || c > '9' || f->rest > XLB_FRAME_MAX / 10)
		return 0;
	f->rest = f->rest * 10 + c - '0';
	return f->rest <= XLB_FRAME_MAX;
}

/* The value of a known header that is whole in the piece and written as nearly everybody does.  Bytes of it, its line end
 * included; 0: it has to be read byte by byte.  The NUL behind the last byte is in none of these texts. */
static __always_inline __u32 xlb_frame_plain_value(struct xlb_frame *f, const __u8 *value)
{
	__u32 blank = value[0] == ' ', i;
	const __u8 *p = value + blank;
	__u64 first = xlb_fold(xlb_load8(p)), length = 0;

	if (f->name == XLB_NAME_LENGTH) {
		for (i = 0; i < XLB_PLAIN_DIGITS; i++) {
			if (p[i] < '0' || p[i] > '9')
				break;
			length = length * 10 + (p[i] & 15);
		}
		if (!i || p[i] != '\r' || p[i + 1] != '\n')
			return 0;
		f->rest = length;
		f->flags |= XLB_FRAME_LENGTH;
		return blank + i + 2;
	}
	if (f->name == XLB_NAME_CODING) {
		if (xlb_first_bytes(first, 7) != XLB_WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', 0) || p[7] != '\r' ||
		    p[8] != '\n')
			return 0;
		f->flags |= XLB_FRAME_CHUNKED;
		return blank + 9;
	}
	if (first == XLB_WORD('k', 'e', 'e', 'p', '-', 'a', 'l', 'i') &&
	    xlb_fold(xlb_load8(p + 2)) == XLB_WORD('e', 'p', '-', 'a', 'l', 'i', 'v', 'e') && p[10] == '\r' &&
	    p[11] == '\n') {
		f->flags |= XLB_FRAME_KEEP_ALIVE;
		return blank + 12;
	}
	if (xlb_first_bytes(first, 5) == XLB_WORD('c', 'l', 'o', 's', 'e', 0, 0, 0) && p[5] == '\r' && p[6] == '\n') {
		f->flags |= XLB_FRAME_CLOSE;
		return blank + 7;
	}
	return 0;
}

static __always_inline long xlb_frame_value(struct xlb_bytes *in, struct xlb_frame *f)
{
	const __u8 *p = xlb_feed_at(in, in->at);
	__u32 name = f->name;
	__u8 c = *p;

	if (f->column == XLB_COLUMN_CR) {
		in->at++;
		if (c != '\n')
			return xlb_frame_error(f);
		xlb_frame_go(f, XLB_PHASE_NAME, 0);
		return 0;
	}
	if (!name) {
		c = xlb_frame_text(in);
		if (!c)
			return 0;
		p = xlb_feed_at(in, in->at);
		in->at++;
		if (c == '\t')
			return 0;
		if (c != '\r')
			return xlb_frame_error(f);
		f->column = XLB_COLUMN_CR;
		if (p[1] != '\n' || in->at >= in->len)
			return 0;
		in->at++;
		xlb_frame_go(f, XLB_PHASE_NAME, 0);
		return 0;
	}
	if (!f->column) {
		__u32 size = xlb_frame_plain_value(f, p);

		if (size) {
			in->at += size;
			xlb_frame_go(f, XLB_PHASE_NAME, 0);
			return 0;
		}
	}
	in->at++;
	if (c == '\r') {
		if (name & XLB_NAME_CONNECTION) {
			xlb_frame_option_end(f, f->column);
		} else if (!f->column || ((name & XLB_NAME_CODING) && f->token != 7)) {
			return xlb_frame_error(f);
		} else {
			f->flags |= name & XLB_NAME_CODING ? XLB_FRAME_CHUNKED : XLB_FRAME_LENGTH;
		}
		f->column = XLB_COLUMN_CR;
		return 0;
	}
	if (c != '\t' && (c < ' ' || c == 0x7f))
		return xlb_frame_error(f);
	if (name & XLB_NAME_CONNECTION)
		xlb_frame_connection(f, c);
	else if (!xlb_frame_word(f, c))
		return xlb_frame_error(f);
	return 0;
}

/* ---- bodies ----------------------------------------------------------------------------------------------------- */

/* Consumes up to n bytes of a body without looking at them.  How many of them belong to the message; 0 also where a
 * byte must be looked at (the line ends and sizes of chunks): xlb_frame_feed. */
static __always_inline __u64 xlb_frame_skip(struct xlb_frame *f, __u64 n)
{
	__u64 rest = f->rest;

	if (f->phase == XLB_PHASE_UNTIL_CLOSE || f->phase == XLB_PHASE_TUNNEL)
		return n;
	if (f->phase == XLB_PHASE_BODY) {
		n = n < rest ? n : rest;
		f->rest = rest - n;
		if (n == rest)
			f->phase = XLB_PHASE_DONE;
		return n;
	}
	if (f->phase == XLB_PHASE_CHUNK && rest > 2) {
		n = n < rest - 2 ? n : rest - 2;
		f->rest = rest - n;
		return n;
	}
	return 0;
}

static __always_inline long xlb_frame_chunk(struct xlb_bytes *in, struct xlb_frame *f)
{
	__u8 c;

	if (f->rest > 2) {
		in->at += xlb_frame_skip(f, in->len - in->at);
		return 0;
	}
	c = *xlb_feed_at(in, in->at);
	in->at++;
	if (c != (f->rest == 2 ? '\r' : '\n'))
		return xlb_frame_error(f);
	if (--f->rest == 0)
		xlb_frame_go(f, XLB_PHASE_CHUNK_SIZE, 0);
	return 0;
}

static __always_inline long xlb_frame_chunk_size(struct xlb_bytes *in, struct xlb_frame *f)
{
	__u32 column = f->column;
	__u8 c = *xlb_feed_at(in, in->at), digit;

	if (column == XLB_COLUMN_EXTENSION) {
		c = xlb_frame_text(in);
		if (!c)
			return 0;
		in->at++;
		if (c == '\r')
			f->column = XLB_COLUMN_CR;
		else if (c != '\t')
			return xlb_frame_error(f);
		return 0;
	}
	in->at++;
	if (column == XLB_COLUMN_CR) {
		if (c != '\n')
			return xlb_frame_error(f);
		if (f->rest) {
			f->rest += 2;
			xlb_frame_go(f, XLB_PHASE_CHUNK, 0);
		} else {
			xlb_frame_go(f, XLB_PHASE_TRAILER, 0);
		}
		return 0;
	}
	digit = c - '0';
	if (digit > 9) {
		digit = (c | 0x20) - 'a';
		digit = digit < 6 ? digit + 10 : 16;
	}
	if (digit < 16) {
		if (column >= XLB_CHUNK_DIGITS || f->rest > XLB_FRAME_MAX / 16 - 1)
			return xlb_frame_error(f);
		f->rest = f->rest * 16 + digit;
		f->column = column + 1;
		return 0;
	}
	if (!column)
		return xlb_frame_error(f);
	if (c == '\r')
		f->column = XLB_COLUMN_CR;
	else if (c == ';')
		f->column = XLB_COLUMN_EXTENSION;
	else if (c == ' ' || c == '\t')
		f->column = XLB_COLUMN_BLANK;
	else
		return xlb_frame_error(f);
	return 0;
}

/* Trailers are framed, not read. */
static __always_inline long xlb_frame_trailer(struct xlb_bytes *in, struct xlb_frame *f)
{
	__u32 column = f->column;
	__u8 c = *xlb_feed_at(in, in->at);

	if (column == XLB_COLUMN_BEGUN) {
		c = xlb_frame_text(in);
		if (!c)
			return 0;
		in->at++;
		if (c == '\r')
			f->column = XLB_COLUMN_CR | XLB_COLUMN_BEGUN;
		else if (c != '\t')
			return xlb_frame_error(f);
		return 0;
	}
	in->at++;
	if (column & XLB_COLUMN_CR) {
		if (c != '\n')
			return xlb_frame_error(f);
		if (column & XLB_COLUMN_BEGUN) {
			f->column = 0;
			return 0;
		}
		f->phase = XLB_PHASE_DONE;
		return 1;
	}
	if (c == '\r' && !column) {
		f->column = XLB_COLUMN_CR;
	} else if (c == ':' && column) {
		f->column = XLB_COLUMN_BEGUN;
	} else {
		if (!(xlb_chars[c] & XLB_CHAR_TOKEN))
			return xlb_frame_error(f);
		f->column = XLB_COLUMN_LONG;
	}
	return 0;
}

static __always_inline long xlb_frame_part(struct xlb_frame *f, struct xlb_bytes *in)
{
	__u8 phase = f->phase;

	if (in->at >= in->len)
		return 1;
	if (phase == XLB_PHASE_NAME) {
		if (xlb_frame_name(in, f))
			return 1;
		phase = f->phase;
		if (in->at >= in->len)
			return 1;
	}
	switch (phase) {
	case XLB_PHASE_NAME:
		return 0;
	case XLB_PHASE_VALUE:
		return xlb_frame_value(in, f);
	case XLB_PHASE_START:
		return xlb_frame_start(in, f);
	case XLB_PHASE_CHUNK_SIZE:
		return xlb_frame_chunk_size(in, f);
	case XLB_PHASE_CHUNK:
		return xlb_frame_chunk(in, f);
	case XLB_PHASE_TRAILER:
		return xlb_frame_trailer(in, f);
	case XLB_PHASE_BODY:
	case XLB_PHASE_UNTIL_CLOSE:
		in->at += xlb_frame_skip(f, in->len - in->at);
		return f->phase == XLB_PHASE_DONE;
	default:
		return 1;
	}
}

/* Several parts at once, because a call is not cheap on machines that mitigate Spectre at returns. */
static long xlb_frame_step(__u32 i, struct xlb_feed *feed)
{
	__u32 k;

	for (k = 0; k < XLB_FRAME_PARTS; k++)
		if (xlb_frame_part(feed->f, feed->in))
			return 1;
	return 0;
}

/* xlb_frame_feed with its arguments made fit for a program that the verifier checks by itself. */
__noinline int xlb_frame_run(struct xlb_frame *f, struct xlb_bytes *in, __u32 len, __u32 input)
{
	struct xlb_feed feed = { f, in };
	__u32 end;
	__u8 kept;

	if (!f || !in)
		return 0;
	if (len > XLB_MAX_HEAD)
		len = XLB_MAX_HEAD;
	in->at = 0;
	in->len = len;
	in->input = input;
	end = xlb_at_most(len, XLB_MAX_HEAD);
	/* A NUL behind the last byte ends every scan. */
	kept = in->b[end];
	in->b[end] = 0;
	bpf_loop(XLB_FRAME_STEPS, xlb_frame_step, &feed, 0);
	in->b[end] = kept;
	return in->at < len ? in->at : len;
}

/* Reads `len` bytes, at most XLB_MAX_HEAD, from xlb_scratch.buf.  How many were consumed: all, unless the message is
 * complete (DONE), in error (ERROR) or becomes a tunnel (TUNNEL) before.  Body bytes among them count; what follows them
 * can be skipped by xlb_frame_skip.
 *
 * A new response begins with a struct xlb_frame of zeros.  For the body of a request, set `phase` to BODY or CHUNK_SIZE,
 * `rest` to the length or 0, and the other fields to 0. */
static __always_inline int xlb_frame_feed(struct xlb_frame *f, __u8 *bytes, __u32 len, int response, int head_request)
{
	return xlb_frame_run(f, (struct xlb_bytes *)bytes, len,
			     (response ? XLB_FEED_RESPONSE : 0) | (head_request ? XLB_FEED_TO_HEAD : 0));
}

#endif
