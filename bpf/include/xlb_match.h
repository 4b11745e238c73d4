/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a request head to a cluster, over an image (struct xlb_image_header): what `kernel_reason` in
 * translator/evaluate.py says, in its order. */
#ifndef XLB_MATCH_H
#define XLB_MATCH_H

#include "xlb_scratch.h"
#include "xlb_reasons.h"

enum {
	XLB_NO_ROUTE_INDEX = ~0u,
	XLB_KEY_WORDS = sizeof(((struct xlb_key *)0)->text) / 8,
	XLB_VALUE_TEXT_WORDS = sizeof(((struct xlb_predicate *)0)->text) / 8,
	XLB_CELL_WORDS = XLB_CELL / 8,
	XLB_LIST_WORDS = XLB_CELL / 4,
	XLB_WEIGHTED_CELL = sizeof(((struct xlb_weighted *)0)->entry) / 8,
};

struct xlb_decision {
	__u32 reason;  /* enum xlb_reason; 0: the kernel carries it */
	__u32 route;   /* RouteRule.index; XLB_NO_ROUTE_INDEX: none */
	__u32 cluster; /* cell of struct xlb_cluster; 0: none was chosen */
	__u32 pad;
};

struct xlb_match_context {
	struct xlb_scratch *s;
	void *image;
	struct xlb_lengths *lengths;
};

static __always_inline void *xlb_cell(void *image, __u32 number)
{
	return bpf_map_lookup_elem(image, &number);
}

/* Text at an offset from s->buf on; XLB_PADDING bytes can be read there. */
static __always_inline const __u8 *xlb_text_at(const struct xlb_scratch *s, __u32 at)
{
	return s->buf + xlb_at_most(at, XLB_HOST_BACK + XLB_RUNNING);
}

struct xlb_rest {
	const struct xlb_scratch *s;
	void *image;
	__u64 fold;
	__u32 at;   /* of the text */
	__u32 len;  /* of it */
	__u32 cell; /* the first that holds it */
	__u32 differs;
};

static long xlb_rest_step(__u32 i, struct xlb_rest *rest)
{
	const __u64 *cell = xlb_cell(rest->image, rest->cell + i);
	__u32 left = rest->len - i * XLB_CELL;
	const __u8 *text = xlb_text_at(rest->s, rest->at + i * XLB_CELL);
	__u64 differs = 0;
	__u32 w;

	if (!cell) {
		rest->differs = 1;
		return 1;
	}
	for (w = 0; w < XLB_CELL_WORDS; w++) {
		if (w * 8 >= left)
			break;
		differs |= xlb_first_bytes(xlb_lower(xlb_load8(text + w * 8), rest->fold) ^ cell[w], left - w * 8);
	}
	if (!differs)
		return 0;
	rest->differs = 1;
	return 1;
}

/* Whether text is what cells hold behind the part that the first cell has room for. */
static __noinline int xlb_rest_is(void *image, struct xlb_scratch *s, __u64 at_len, __u64 fold, __u32 cell)
{
	struct xlb_rest rest = { s, image, fold, at_len, at_len >> 32, cell, 0 };

	if (!cell)
		return 0;
	bpf_loop((rest.len + XLB_CELL - 1) / XLB_CELL, xlb_rest_step, &rest, 0);
	return !rest.differs;
}

/* The value of a key; 0: there is none.
 *
 * hash: of the text, without xlb_hash_end.  kind_scope: enum xlb_key_kind | scope << 8.  Of keys with the same hash only
 * the first is compared: that two keys agree in 64 bits under a random seed is not a case. */
static __noinline __u32 xlb_find(void *image, struct xlb_scratch *s, __u64 hash, __u64 kind_scope, __u64 at_len)
{
	__u32 at = at_len, len = at_len >> 32, scope = kind_scope >> 8, i, w;
	__u8 kind = kind_scope;
	/* Only a path is compared letter by letter as it is. */
	__u64 fold = kind == XLB_KEY_PATH_EXACT || kind == XLB_KEY_PATH_PREFIX ? 0 : ~0ull;
	struct xlb_key *key = 0;
	const __u8 *text;
	__u64 differs = 0;

	hash = xlb_hash_end(hash, kind, scope);
	for (i = 0; i < XLB_MAX_PROBES; i++) {
		key = xlb_cell(image, s->match.table + (((__u32)(hash >> 32) + i) & s->match.table_mask));
		if (!key || key->kind == XLB_KEY_FREE)
			return 0;
		if (key->hash == hash && key->kind == kind)
			break;
	}
	if (i == XLB_MAX_PROBES || !key || key->scope != scope || key->len != len)
		return 0;
	text = xlb_text_at(s, at);
	for (w = 0; w < XLB_KEY_WORDS; w++) {
		if (w * 8 >= len)
			break;
		differs |= xlb_first_bytes(xlb_lower(xlb_load8(text + w * 8), fold) ^ ((__u64 *)key->text)[w], len - w * 8);
	}
	if (differs)
		return 0;
	if (len > sizeof(key->text) &&
	    !xlb_rest_is(image, s, (at + sizeof(key->text)) | (__u64)(len - sizeof(key->text)) << 32, fold, key->more))
		return 0;
	return key->value;
}

/* ---- header names ---------------------------------------------------------------------------------------------- */
static long xlb_slot_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_line *line;
	__u32 slot;

	if (i >= XLB_MAX_HEADERS)
		return 1;
	line = &s->line[i];
	if (line->name_len > XLB_MAX_KEY)
		return 0;
	slot = xlb_find(c->image, s, line->hash, XLB_KEY_HEADER_NAME, line->name | (__u64)line->name_len << 32);
	if (!slot || slot >= XLB_MAX_SLOTS)
		return 0;
	if (s->slot[slot]) {
		s->match.repeated = i + 1;
		return 1;
	}
	s->slot[slot] = i + 1;
	return 0;
}

/* ---- the longest of several lengths: path prefixes, wildcards of hosts -------------------------------------------- */
static long xlb_length_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	__u64 len;
	__u32 kind, found;
	__u64 hash;

	if (i >= XLB_MAX_LENGTHS)
		return 1;
	len = c->lengths->len[i];
	if (len > s->match.text_len)
		return 0;
	kind = s->match.kind_scope;
	hash = (kind & 0xff) == XLB_KEY_PATH_PREFIX ? s->path_hash[xlb_at_most(len, XLB_MAX_KEY)]
						    : s->host_hash[xlb_at_most(len, XLB_MAX_KEY)];
	found = xlb_find(c->image, s, hash, s->match.kind_scope, s->match.text_at | len << 32);
	s->match.found = found;
	return found != 0;
}

/* The value of the longest key that text_len bytes at text_at begin with; 0: none. */
static __always_inline __u32 xlb_longest(struct xlb_match_context *c, __u32 lengths, __u64 kind_scope, __u32 text_at,
					 __u32 text_len)
{
	struct xlb_scratch *s = c->s;

	s->match.found = 0;
	c->lengths = xlb_cell(c->image, lengths);
	if (!c->lengths)
		return 0;
	s->match.kind_scope = kind_scope;
	s->match.text_at = text_at;
	s->match.text_len = text_len;
	bpf_loop(c->lengths->n, xlb_length_step, c, 0);
	return s->match.found;
}

/* ---- virtual host ------------------------------------------------------------------------------------------------ */
static long xlb_host_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	__u32 n = s->match.host_len, to;
	__u8 b;

	to = xlb_at_most(i, XLB_MAX_KEY - 1);
	b = *xlb_text_at(s, s->head.host + (s->match.backwards ? n - 1 - i : i));
	b |= xlb_chars[b] & XLB_CHAR_UPPER;
	s->match.hash = xlb_hash_step(s->match.hash, b);
	s->host_hash[to + 1] = s->match.hash;
	if (s->match.backwards)
		s->host_back[to] = b;
	return 0;
}

/* Running hashes of the host, from one end or the other. */
static __noinline int xlb_host_hashes(struct xlb_scratch *s, void *image, int backwards)
{
	struct xlb_match_context c = { s, image, 0 };
	__u32 n = s->match.host_len;

	s->match.backwards = backwards;
	s->match.hash = s->seed;
	s->host_hash[0] = s->seed;
	bpf_loop(n < XLB_MAX_KEY ? n : XLB_MAX_KEY, xlb_host_step, &c, 0);
	return 0;
}

/* Cell of the virtual host; 0: none. */
static __noinline __u32 xlb_virtual_host(void *image, struct xlb_scratch *s)
{
	struct xlb_match_context c = { s, image, 0 };
	struct xlb_image_header *header = xlb_cell(image, 0);
	__u32 found, len = s->head.host_len;
	__u64 hash = s->head.host_hash;

	if (!header)
		return 0;
	if (header->flags & XLB_IMAGE_ANY_HOST)
		return header->default_vhost;
	if (header->flags & XLB_IMAGE_IGNORE_PORT) {
		len = s->head.host_name_len;
		hash = s->head.host_name_hash;
	}
	if (len <= XLB_MAX_KEY) {
		found = xlb_find(image, s, hash, XLB_KEY_HOST_EXACT, s->head.host | (__u64)len << 32);
		if (found)
			return found;
	}
	s->match.host_len = len;
	/* A wildcard stands for at least one character. */
	if (header->suffix_lens) {
		xlb_host_hashes(s, image, 1);
		found = xlb_longest(&c, header->suffix_lens, XLB_KEY_HOST_SUFFIX, XLB_HOST_BACK, len - 1);
		if (found)
			return found;
	}
	if (header->prefix_lens) {
		xlb_host_hashes(s, image, 0);
		found = xlb_longest(&c, header->prefix_lens, XLB_KEY_HOST_PREFIX, s->head.host, len - 1);
		if (found)
			return found;
	}
	return header->default_vhost;
}

/* ---- route ------------------------------------------------------------------------------------------------------- */

/* Cell of the list of candidates; 0: none. */
static __noinline __u32 xlb_candidates(void *image, struct xlb_scratch *s, struct xlb_vhost *vhost)
{
	struct xlb_match_context c = { s, image, 0 };
	__u64 scope = (__u64)vhost->index << 8;
	__u32 found, len = s->head.path_len;

	if (vhost->has_exact && len <= XLB_MAX_KEY) {
		found = xlb_find(image, s, s->path_hash[xlb_at_most(len, XLB_MAX_KEY)], scope | XLB_KEY_PATH_EXACT,
				 s->head.target | (__u64)len << 32);
		if (found)
			return found;
	}
	if (vhost->lens) {
		found = xlb_longest(&c, vhost->lens, scope | XLB_KEY_PATH_PREFIX, s->head.target, len);
		if (found)
			return found;
	}
	return vhost->any_list;
}

/* Whether predicate number i of the route holds; if not, the loop ends. */
static long xlb_predicate_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_predicate *predicate = xlb_cell(c->image, s->match.predicate + i);
	__u32 at = 0, len = s->head.method_len, line, w;
	__u64 differs = 0;
	const __u8 *text;

	s->match.failed = 1;
	if (!predicate)
		return 1;
	if (predicate->slot) {
		line = s->slot[predicate->slot & (XLB_MAX_SLOTS - 1)];
		if (predicate->kind == XLB_PRED_PRESENT) {
			s->match.failed = !line == !predicate->invert;
			return s->match.failed != 0;
		}
		if (!line || line > XLB_MAX_HEADERS)
			return 1;
		at = s->line[line - 1].value;
		len = s->line[line - 1].value_len;
	} else if (predicate->kind == XLB_PRED_PRESENT) {
		s->match.failed = predicate->invert;
		return s->match.failed != 0;
	}
	if (len != predicate->len)
		return 1;
	text = xlb_text_at(s, at);
	for (w = 0; w < XLB_VALUE_TEXT_WORDS; w++) {
		if (w * 8 >= len)
			break;
		differs |= xlb_first_bytes(xlb_load8(text + w * 8) ^ ((__u64 *)predicate->text)[w], len - w * 8);
	}
	if (differs)
		return 1;
	if (len > sizeof(predicate->text) &&
	    !xlb_rest_is(c->image, s, (at + sizeof(predicate->text)) | (__u64)(len - sizeof(predicate->text)) << 32, 0,
			 predicate->more))
		return 1;
	s->match.failed = 0;
	return 0;
}

static __always_inline __u32 xlb_word(void *image, __u32 cell, __u32 position)
{
	struct xlb_list *list = xlb_cell(image, cell + position / XLB_LIST_WORDS);

	return list ? list->word[position % XLB_LIST_WORDS] : 0;
}

/* Candidate number i; the loop ends with the first that is undecided or matches. */
static long xlb_route_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	__u32 number = xlb_word(c->image, s->match.list, i + 1);
	struct xlb_route *route = xlb_cell(c->image, number);

	if (!route || !number) {
		s->match.reason = XLB_REASON_NO_IMAGE;
		return 1;
	}
	if (!(route->flags & XLB_ROUTE_UNDECIDED) && route->predicates) {
		s->match.failed = 0;
		s->match.predicate = route->predicate;
		bpf_loop(route->predicates, xlb_predicate_step, c, 0);
		if (s->match.failed)
			return 0;
	}
	s->match.route = number;
	return 1;
}

/* ---- cluster ----------------------------------------------------------------------------------------------------- */
static long xlb_weighted_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_weighted *cell = xlb_cell(c->image, s->match.weighted + i);
	__u32 k;

	if (!cell)
		return 1;
	for (k = 0; k < XLB_WEIGHTED_CELL; k++) {
		if (s->match.rest < cell->entry[k].cumulative) {
			s->match.cluster = cell->entry[k].cluster;
			return 1;
		}
	}
	return 0;
}

static __noinline __u32 xlb_choose(void *image, struct xlb_scratch *s, struct xlb_route *route, __u32 random)
{
	struct xlb_match_context c = { s, image, 0 };

	if (route->clusters == 1)
		return route->cluster;
	if (!route->weight_sum)
		return 0;
	s->match.cluster = 0;
	s->match.weighted = route->cluster;
	s->match.rest = random % route->weight_sum;
	bpf_loop((route->clusters + XLB_WEIGHTED_CELL - 1) / XLB_WEIGHTED_CELL, xlb_weighted_step, &c, 0);
	return s->match.cluster;
}

/* What becomes of the request that xlb_parse_head has read into s.  Fills `out`, answers its reason.
 *
 * image: inner map of xlb_images.  random: for the choice among weighted clusters, modulo the sum of the weights.
 * A cell that is not there is NO_IMAGE: the image is not what its builder has written. */
static __noinline int xlb_match(void *image, struct xlb_scratch *s, __u32 random, struct xlb_decision *out)
{
	struct xlb_match_context c = { s, image, 0 };
	struct xlb_image_header *header = xlb_cell(image, 0);
	struct xlb_cluster *cluster;
	struct xlb_vhost *vhost;
	struct xlb_route *route;
	__u32 number, lines;

	out->route = XLB_NO_ROUTE_INDEX;
	out->cluster = 0;
	out->pad = 0;
	if (!header || header->magic != XLB_IMAGE_MAGIC)
		return out->reason = XLB_REASON_NO_IMAGE;
	s->match.table = header->table;
	s->match.table_mask = header->table_mask;
	if (header->header_names) {
		__builtin_memset(s->slot, 0, sizeof(s->slot));
		s->match.repeated = 0;
		/* Lines behind the one where something was found are not looked at. */
		lines = s->head.nlines;
		if (s->head.reason && s->head.reason_line < lines)
			lines = s->head.reason_line;
		if (s->head.reason && s->head.reason_line == XLB_NONE_LINE)
			lines = 0;
		bpf_loop(lines, xlb_slot_step, &c, 0);
		if (s->match.repeated)
			return out->reason = XLB_REASON_REPEATED_HEADER;
	}
	if (s->head.reason)
		return out->reason = s->head.reason;
	if (header->reason)
		return out->reason = header->reason;
	number = xlb_virtual_host(image, s);
	if (!number)
		return out->reason = XLB_REASON_NO_VIRTUAL_HOST;
	vhost = xlb_cell(image, number);
	if (!vhost)
		return out->reason = XLB_REASON_NO_IMAGE;
	if (vhost->reason)
		return out->reason = vhost->reason;
	number = xlb_candidates(image, s, vhost);
	if (!number)
		return out->reason = XLB_REASON_NO_ROUTE;
	s->match.reason = XLB_REASON_NO_ROUTE;
	s->match.route = 0;
	s->match.list = number;
	bpf_loop(xlb_word(image, number, 0), xlb_route_step, &c, 0);
	number = s->match.route;
	if (!number)
		return out->reason = s->match.reason;
	route = xlb_cell(image, number);
	if (!route)
		return out->reason = XLB_REASON_NO_IMAGE;
	out->route = route->index;
	if (route->reason)
		return out->reason = route->reason;
	number = xlb_choose(image, s, route, random);
	cluster = xlb_cell(image, number);
	if (!cluster || !number)
		return out->reason = XLB_REASON_NO_IMAGE;
	out->cluster = number;
	return out->reason = cluster->reason;
}

#endif
