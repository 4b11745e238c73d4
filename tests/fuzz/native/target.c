/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* libFuzzer target: any bytes as a request, as a chunked body, and as a response.  What must hold for all of them:
 *
 * - nothing outside the buffer and its padding is read (AddressSanitizer, with the rest of the scratch poisoned), and
 *   what lies behind the message, or was left in the scratch by another one, changes nothing;
 * - a head that is not relayed is complete, reads alike in strict.h, and says where its body ends;
 * - a head cut anywhere is not complete;
 * - the framer takes the same bytes and ends in the same state however they are cut. */
#define _GNU_SOURCE
#include "strict.h"
#include "mutate.h"

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

enum { XLB_BYTEWISE = 1000 /* longer messages are not fed byte by byte */ };

/* What may lie behind a message: each would make a difference to some reader that looks at it. */
static const __u8 xlb_behind[] = { 0, '\r', '\n', ' ', '\t', ':', ',', ';', '0', 'a', 'x', 0xff, '/', '.', 'H' };

static __u8 xlb_any_behind(struct xlb_random *random)
{
	return xlb_behind[xlb_random_below(random, sizeof(xlb_behind))];
}

/* Only the matcher's; the padding of buf is the last that the parser and the framer may read. */
static void xlb_poison(struct xlb_scratch *s)
{
	ASAN_POISON_MEMORY_REGION(s->host_hash, sizeof(s->host_hash));
	ASAN_POISON_MEMORY_REGION(s->slot, sizeof(s->slot));
	ASAN_POISON_MEMORY_REGION(s->host_back, sizeof(*s) - offsetof(struct xlb_scratch, host_back));
}

/* One of two, as another message may have left it. */
static struct xlb_scratch *xlb_take(int which, __u8 left)
{
	static struct xlb_scratch scratch[2];
	struct xlb_scratch *s = &scratch[which];

	ASAN_UNPOISON_MEMORY_REGION(s, sizeof(*s));
	memset(s, left, sizeof(*s));
	s->seed = 0x123456789abcdef0;
	xlb_poison(s);
	return s;
}

/* ---- heads ------------------------------------------------------------------------------------------------------ */

static void xlb_same_head(const struct xlb_scratch *a, const struct xlb_scratch *b)
{
	__u32 hashes = a->head.path_len < XLB_MAX_KEY ? a->head.path_len : XLB_MAX_KEY;

	XLB_CHECK(!memcmp(&a->head, &b->head, sizeof(a->head)));
	XLB_CHECK(!memcmp(a->line, b->line, a->head.nlines * sizeof(*a->line)));
	if (!a->head.reason) /* else the matcher does not get that far */
		XLB_CHECK(!memcmp(a->path_hash, b->path_hash, (hashes + 1) * sizeof(*a->path_hash)));
}

static void xlb_check_head(const __u8 *bytes, __u64 size, struct xlb_random *random)
{
	struct xlb_scratch *s = xlb_take(0, 0xa5), *other = xlb_take(1, 0);
	const struct xlb_head *head = &s->head;
	__u32 cut;

	xlb_native_head(s, bytes, size, xlb_any_behind(random));
	XLB_CHECK(!memcmp(s->buf, bytes, s->size) && !s->buf[s->size]);
	xlb_native_head(other, bytes, size, xlb_any_behind(random));
	xlb_same_head(s, other);
	xlb_native_head(other, bytes, size, xlb_any_behind(random));
	xlb_same_head(s, other);

	XLB_CHECK(head->relay <= 1 && head->complete <= 1 && head->more <= 1 && head->chunked <= 1);
	XLB_CHECK(head->nlines <= XLB_MAX_HEADERS);
	XLB_CHECK(head->head_len <= s->size && !head->head_len == !head->complete);
	XLB_CHECK(!head->relay || head->reason);
	XLB_CHECK(head->relay || head->complete);
	XLB_CHECK(!head->more || (head->relay && !head->complete && s->size < XLB_MAX_HEAD));
	XLB_CHECK(!head->relay || !head->has_length || !head->chunked);
	if (!head->relay)
		xlb_strict_head(s, bytes);
	if (head->complete) {
		/* What follows a head does not matter, and less of it is no head. */
		xlb_native_head(other, bytes, head->head_len, xlb_any_behind(random));
		xlb_same_head(s, other);
		cut = xlb_random_below(random, head->head_len);
		xlb_native_head(other, bytes, cut, bytes[cut]);
		XLB_CHECK(!other->head.complete && other->head.relay);
		if (!head->relay)
			XLB_CHECK(other->head.more);
	}
}

/* ---- the framer ------------------------------------------------------------------------------------------------- */

struct xlb_run {
	struct xlb_scratch *s;
	const __u8 *bytes;
	__u64 size;
	struct xlb_frame begin;
	int response, to_head;
};

struct xlb_end {
	struct xlb_frame f;
	__u64 taken;
};

static int xlb_ended(const struct xlb_frame *f)
{
	return f->phase == XLB_PHASE_DONE || f->phase == XLB_PHASE_ERROR || f->phase == XLB_PHASE_TUNNEL;
}

/* In pieces of at most `most` bytes, or of random ones up to that; `skips`: bodies are skipped where they can be. */
static struct xlb_end xlb_run(const struct xlb_run *run, __u64 most, int skips, struct xlb_random *random)
{
	struct xlb_end end = { run->begin, 0 };
	__u64 piece, took;

	while (end.taken < run->size && !xlb_ended(&end.f)) {
		piece = random ? 1 + xlb_random_below(random, most) : most;
		if (piece > run->size - end.taken)
			piece = run->size - end.taken;
		took = skips ? xlb_frame_skip(&end.f, piece) : 0;
		if (!took)
			took = xlb_native_feed(run->s, &end.f, run->bytes + end.taken, piece,
					       random ? xlb_any_behind(random) : 0, run->response, run->to_head);
		XLB_CHECK(took <= piece && (took == piece || took || xlb_ended(&end.f)));
		end.taken += took;
	}
	if (xlb_ended(&end.f) && end.taken < run->size) {
		struct xlb_frame after = end.f;

		piece = run->size - end.taken < XLB_MAX_HEAD ? run->size - end.taken : XLB_MAX_HEAD;
		XLB_CHECK(!xlb_native_feed(run->s, &after, run->bytes + end.taken, piece, 0, run->response,
					   run->to_head));
		XLB_CHECK(!memcmp(&after, &end.f, sizeof(after)));
	}
	return end;
}

static void xlb_same_end(struct xlb_end a, struct xlb_end b)
{
	XLB_CHECK(a.taken == b.taken && a.f.phase == b.f.phase && a.f.flags == b.f.flags && a.f.status == b.f.status);
	XLB_CHECK(a.f.phase == XLB_PHASE_ERROR || a.f.rest == b.f.rest);
}

/* Where the framer is after all of it, which is the same in any pieces. */
static struct xlb_end xlb_check_framer(const struct xlb_run *run, struct xlb_random *random)
{
	struct xlb_end whole = xlb_run(run, XLB_MAX_HEAD, 0, NULL);

	xlb_same_end(whole, xlb_run(run, 1 + xlb_random_below(random, 64), 0, random));
	xlb_same_end(whole, xlb_run(run, 1 + xlb_random_below(random, 2048), 1, random));
	xlb_same_end(whole, xlb_run(run, XLB_SEGMENT_CHUNK, 1, NULL));
	if (run->size <= XLB_BYTEWISE)
		xlb_same_end(whole, xlb_run(run, 1, 0, NULL));
	XLB_CHECK(whole.f.phase <= XLB_PHASE_ERROR);
	XLB_CHECK(whole.taken == run->size || xlb_ended(&whole.f));
	return whole;
}

static void xlb_check_response(struct xlb_run run, struct xlb_random *random)
{
	struct xlb_end end;
	__u32 coded;

	run.response = 1;
	end = xlb_check_framer(&run, random);
	coded = end.f.flags & (XLB_FRAME_CHUNKED | XLB_FRAME_LENGTH);
	if (end.f.phase == XLB_PHASE_BODY || end.f.phase == XLB_PHASE_UNTIL_CLOSE || end.f.phase == XLB_PHASE_DONE) {
		XLB_CHECK(end.f.flags & XLB_FRAME_HEAD);
		XLB_CHECK(end.f.status >= 200 && end.f.status <= 999);
		XLB_CHECK(coded != (XLB_FRAME_CHUNKED | XLB_FRAME_LENGTH));
	}
	if (end.f.phase == XLB_PHASE_BODY)
		XLB_CHECK(coded == XLB_FRAME_LENGTH && end.f.rest);
	if (end.f.phase == XLB_PHASE_UNTIL_CLOSE)
		XLB_CHECK(!coded && end.f.flags & XLB_FRAME_CLOSE);
	if (end.f.phase == XLB_PHASE_DONE && !coded)
		XLB_CHECK(run.to_head || end.f.status == 204 || end.f.status == 304);
}

static void xlb_check_stream(const __u8 *bytes, __u64 size, struct xlb_random *random)
{
	struct xlb_run run = { .s = xlb_take(0, 0x5a), .bytes = bytes, .size = size };
	struct xlb_head head;
	struct xlb_end end;
	__u64 at = 0, strict;
	int is_chunked;

	xlb_check_response(run, random);
	run.to_head = 1;
	xlb_check_response(run, random);
	run.to_head = 0;

	/* The body behind a head, or all as a chunked body. */
	xlb_native_head(run.s, bytes, size, 0);
	head = run.s->head;
	run.begin.phase = XLB_PHASE_CHUNK_SIZE;
	if (head.complete && !head.relay) {
		at = head.head_len;
		run.begin = xlb_native_body(&head);
	}
	is_chunked = run.begin.phase == XLB_PHASE_CHUNK_SIZE;
	run.bytes += at;
	run.size -= at;
	end = xlb_check_framer(&run, random);
	if (is_chunked) {
		strict = xlb_strict_chunks(run.bytes, run.size);
		XLB_CHECK(strict == (end.f.phase == XLB_PHASE_DONE ? end.taken : 0));
	} else if (head.has_length) {
		XLB_CHECK(end.taken == (run.size < head.length ? run.size : head.length));
		XLB_CHECK((end.f.phase == XLB_PHASE_DONE) == (run.size >= head.length));
	} else {
		XLB_CHECK(end.f.phase == XLB_PHASE_DONE && !end.taken);
	}
}

int LLVMFuzzerTestOneInput(const __u8 *bytes, size_t size)
{
	struct xlb_random random = xlb_random_from(bytes, size);

	if (!size)
		return 0;
	xlb_check_head(bytes, size, &random);
	xlb_check_stream(bytes, size, &random);
	XLB_CHECK(!xlb_native_cut);
	return 0;
}
