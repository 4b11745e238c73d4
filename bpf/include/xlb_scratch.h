/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Working memory of one run of a program, and the small tools that the parser, the matcher and the framer share.
 *
 * Parser state lives here and not on the stack: what the verifier knows of a stack slot differs from path to path,
 * and it would walk them all; what comes from memory is unknown on every path, so paths join again. */
#ifndef XLB_SCRATCH_H
#define XLB_SCRATCH_H

#include "xlb_types.h"

#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif
#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

enum {
	XLB_HEAD_MASK = XLB_MAX_HEAD - 1,
	XLB_PADDING = 128,	/* behind the buffer: how far a block may be read from a masked offset */
	XLB_PATH_BLOCK = 28,	/* bytes of a path read in one step: 32 less the 3 that xlb_odd_segments looks back */
	XLB_RUNNING = 512 + 32, /* entries of a running hash: more than XLB_MAX_KEY, for whole blocks */
	XLB_NONE_LINE = ~0u,	/* xlb_head.reason_line: found in the request line */
};

/* Offsets are those in xlb_scratch.buf. */
struct xlb_line {
	__u16 name, name_len;
	__u16 value, value_len; /* without the blanks around it */
};

/* Result of xlb_parse_head. */
struct xlb_head {
	__u32 reason;	   /* enum xlb_reason, the first found; REPEATED_HEADER needs the image: xlb_match */
	__u32 reason_line; /* index of the header line where; XLB_NONE_LINE: request line; nlines: behind all lines */
	__u32 relay;	   /* 1: where the message ends is not certain, or it is no plain HTTP/1.1 exchange */
	__u32 complete;	   /* 1: the head ends within the buffer */
	__u32 more; /* 1: all is well for the framing so far, but the buffer ends before the head (relay is 1 too) */
	__u32 head_len;		  /* bytes, the empty line included */
	__u16 method_len;	  /* the method begins at 0 */
	__u16 target, target_len; /* query included */
	__u16 path_len;		  /* query excluded */
	__u16 host, host_len;	  /* port included */
	__u16 host_name_len;	  /* port excluded */
	__u16 close_at;		  /* of the first option `close` in a connection header; 0: none */
	__u16 nlines;
	__u16 pad;
	__u32 chunked;
	__u32 has_length;
	__u32 is_head; /* method HEAD */
	__u32 close;   /* the client asked for connection: close */
	__u64 length;
	__u64 host_hash; /* FNV-1a 64 of the lower-cased host from xlb_scratch.seed, port included */
	__u64 host_name_hash;
};

/* Where xlb_parse_head is. */
struct xlb_head_state {
	__u64 hash;
	__u64 path;	 /* its last characters: xlb_odd_segments */
	__u64 option[2]; /* the last 16 bytes of a connection option, lower case */
	__u32 at;
	__u32 state; /* enum xlb_head_at */
	__u32 begin; /* of the line */
	__u32 name_len;
	__u32 value; /* where it begins */
	__u32 end;   /* of the value */
	__u32 next;  /* line */
	__u32 option_at;
	__u32 option_len;
	__u32 option_blank; /* not 0: a blank has followed the option */
	__u32 hosts;
	__u32 lengths;
	__u32 bad_length;
	__u32 codings;
	__u32 bad_coding;
	__u32 odd_method;
};

/* Where xlb_match is: kept here because stacks of BPF programs are small. */
struct xlb_match_state {
	__u64 hash;
	__u64 rest_fold; /* the part of a text that is behind the first cell of a key or value */
	__u32 rest_at, rest_len;
	__u32 rest_cell;
	__u32 rest_cells; /* still to be compared */
	__u32 table;	  /* of the image's header */
	__u32 table_mask;
	__u32 repeated;	 /* line with a name that another line had, + 1 */
	__u32 text_kind; /* of the key that a text is to begin with */
	__u32 text_scope;
	__u32 text_at, text_len;
	__u32 found;
	__u32 host_len;
	__u32 backwards;
	__u32 list;
	__u32 route;
	__u32 predicate;
	__u32 failed;
	__u32 weighted;
	__u32 left;
	__u32 cluster;
	__u32 reason;
	__u32 number; /* of the cell that is looked up */
	__u32 pad;
};

/* What a piece of a stream is read from (xlb_frame_feed), and where in it the framer is. */
struct xlb_bytes {
	__u8 b[XLB_MAX_HEAD + XLB_PADDING]; /* xlb_scratch.buf */
	__u32 at, len;
	__u32 input; /* enum xlb_frame_input */
	__u32 pad;
};

struct xlb_scratch {
	__u32 busy; /* for the programs: a run on this CPU that was interrupted uses it */
	__u32 size; /* bytes of the message in buf, at most XLB_MAX_HEAD */
	__u64 seed; /* of the image the message will be matched with */
	struct xlb_head head;
	struct xlb_head_state state;
	struct xlb_match_state match;
	struct xlb_line line[XLB_MAX_HEADERS];
	__u64 path_hash[XLB_RUNNING]; /* [n]: FNV-1a 64 of the first n bytes of the path, from seed; n <= XLB_MAX_KEY */
	__u64 host_hash[XLB_RUNNING]; /* xlb_match: the same of the host, or of the host read backwards */
	__u8 slot[XLB_MAX_SLOTS];     /* xlb_match: line of a header name + 1; 0: there is none */
	union {
		__u8 buf[XLB_MAX_HEAD + XLB_PADDING];
		struct xlb_bytes bytes;
	};
	__u8 host_back[XLB_RUNNING + XLB_PADDING]; /* xlb_match: the host, backwards, in lower case */
};

/* Offset of host_back from buf on: the matcher's texts are told by their offset. */
enum { XLB_HOST_BACK = offsetof(struct xlb_scratch, host_back) - offsetof(struct xlb_scratch, buf) };

/* The smaller one.  Hidden from the compiler, which would compare one register and use a copy of it, of which the
 * verifier then knows nothing. */
static __always_inline __u64 xlb_at_most(__u64 value, __u32 most)
{
	asm volatile("if %[value] <= %[most] goto +1\n\t"
		     "%[value] = %[most]"
		     : [value] "+r"(value)
		     : [most] "i"(most));
	return value;
}

/* ---- characters ------------------------------------------------------------------------------------------------ */
enum {
	XLB_CHAR_TOKEN = 1,    /* RFC 9110: tchar */
	XLB_CHAR_PATH = 2,     /* stands for itself in every normalisation of a path */
	XLB_CHAR_HOST = 4,     /* of a host name or IPv4 address */
	XLB_CHAR_UPPER = 0x20, /* c | (flags & XLB_CHAR_UPPER) is the lower-case character */
	XLB_CHAR_DOT = 0x40,
	XLB_CHAR_SLASH = 0x80,
	XLB_CHAR_SEGMENT_SHIFT = 6, /* brings the last two down to 1 and 2 */
};

#define XLB_CHAR_WORD (XLB_CHAR_TOKEN | XLB_CHAR_PATH | XLB_CHAR_HOST)

/* Not XLB_CHAR_PATH: ';', because Envoy takes a segment "..;x" for "..". */
static const __u8 xlb_chars[256] = {
	['A' ... 'Z'] = XLB_CHAR_WORD | XLB_CHAR_UPPER,
	['a' ... 'z'] = XLB_CHAR_WORD,
	['0' ... '9'] = XLB_CHAR_WORD,
	['-'] = XLB_CHAR_WORD,
	['.'] = XLB_CHAR_WORD | XLB_CHAR_DOT,
	['_'] = XLB_CHAR_WORD,
	['~'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['!'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['$'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['&'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['\''] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['*'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['+'] = XLB_CHAR_TOKEN | XLB_CHAR_PATH,
	['('] = XLB_CHAR_PATH,
	[')'] = XLB_CHAR_PATH,
	[','] = XLB_CHAR_PATH,
	['='] = XLB_CHAR_PATH,
	[':'] = XLB_CHAR_PATH,
	['@'] = XLB_CHAR_PATH,
	['/'] = XLB_CHAR_PATH | XLB_CHAR_SLASH,
	['#'] = XLB_CHAR_TOKEN,
	['%'] = XLB_CHAR_TOKEN,
	['^'] = XLB_CHAR_TOKEN,
	['`'] = XLB_CHAR_TOKEN,
	['|'] = XLB_CHAR_TOKEN,
};

/* ---- eight bytes at a time (little endian; the machines BPF runs on load unaligned words) ------------------------ */
#define XLB_EACH(byte) (0x0101010101010101ull * (byte))
/* Literals of up to eight characters as loaded from memory. */
#define XLB_WORD(a, b, c, d, e, f, g, h)                                                                            \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 | (__u64)(f) << 40 | \
	 (__u64)(g) << 48 | (__u64)(h) << 56)

static __always_inline __u64 xlb_load8(const void *p)
{
	return *(const __u64 *)p;
}

/* The first n (0 ... 8) bytes of a word. */
static __always_inline __u64 xlb_first_bytes(__u64 word, __u32 n)
{
	return n >= 8 ? word : word & ((1ull << (n * 8 & 63)) - 1);
}

/* Letters to lower case, only for comparison with text of lower-case letters and '-': characters from '@' on that are no
 * letters change too.  Those below stay as they are, or CR would become '-'. */
static __always_inline __u64 xlb_fold(__u64 word)
{
	return word | (word & XLB_EACH(0x40)) >> 1;
}

/* Letters A-Z to lower case, where `fold` is ~0. */
static __always_inline __u64 xlb_lower(__u64 word, __u64 fold)
{
	__u64 low = word & XLB_EACH(0x7f);

	return word | ((((low + XLB_EACH(0x3f)) & ~(low + XLB_EACH(0x25)) & ~word & XLB_EACH(0x80)) >> 2) & fold);
}

/* 0x80 in each byte that is a control character (0x00-0x1f, 0x7f). */
static __always_inline __u64 xlb_controls(__u64 word)
{
	__u64 low = word & XLB_EACH(0x7f);

	return (~(low + XLB_EACH(0x60)) | (low + XLB_EACH(0x01))) & ~word & XLB_EACH(0x80);
}

/* 0x80 in each byte that is not one of 0x21-0x7e without '#'. */
static __always_inline __u64 xlb_not_query(__u64 word)
{
	__u64 low = word & XLB_EACH(0x7f);
	__u64 hash = low ^ XLB_EACH('#');

	return (~(low + XLB_EACH(0x5f)) | (low + XLB_EACH(0x01)) | word | ~(hash + XLB_EACH(0x7f))) & XLB_EACH(0x80);
}

/* 0x80 in each byte that is not a letter, digit or '-': of these nearly all header names are made. */
static __always_inline __u64 xlb_not_name(__u64 word)
{
	__u64 low = word & XLB_EACH(0x7f);
	__u64 fold = low | XLB_EACH(0x20);
	__u64 letter = (fold + XLB_EACH(0x1f)) & ~(fold + XLB_EACH(0x05));
	__u64 digit = (low + XLB_EACH(0x50)) & ~(low + XLB_EACH(0x46));
	__u64 dash = ~((low ^ XLB_EACH('-')) + XLB_EACH(0x7f));

	return ~((letter | digit | dash) & ~word) & XLB_EACH(0x80);
}

/* Index of the first byte that has its 0x80 set; flags is not 0. */
static __always_inline __u32 xlb_first(__u64 flags)
{
	return ((((flags & -flags) - 1) & XLB_EACH(1)) * XLB_EACH(1) >> 56) - 1;
}

/* ---- hashes ---------------------------------------------------------------------------------------------------- */
static __always_inline __u64 xlb_hash_step(__u64 hash, __u8 byte)
{
	return (hash ^ byte) * 0x100000001b3ull;
}

static __always_inline __u64 xlb_hash_end(__u64 hash, __u32 kind, __u32 scope)
{
	return (hash ^ ((__u64)scope << 8 | kind)) * 0x9E3779B97F4A7C15ull;
}

#endif
