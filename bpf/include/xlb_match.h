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

/* A cell by its number; 0: the image has none. */
static __always_inline void *xlb_cell(struct xlb_match_context *c, __u32 number)
{
	/* A key on the stack would be one more for each call of this. */
	c->s->match.number = number;
	return bpf_map_lookup_elem(c->image, &c->s->match.number);
}

/* Text at an offset from s->buf on; XLB_PADDING bytes can be read there. */
static __always_inline const __u8 *xlb_text_at(const struct xlb_scratch *s, __u32 at)
{
	return s->buf + xlb_at_most(at, XLB_HOST_BACK + XLB_RUNNING);
}

static long xlb_rest_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	const __u64 *cell = xlb_cell(c, s->match.rest_cell + i);
	__u32 left = s->match.rest_len - i * XLB_CELL;
	const __u8 *text = xlb_text_at(s, s->match.rest_at + i * XLB_CELL);
	__u64 differs = 0, fold = s->match.rest_fold;
	__u32 w;

	if (!cell)
		return 1;
	for (w = 0; w < XLB_CELL_WORDS; w++) {
		if (w * 8 >= left)
			break;
		differs |= xlb_first_bytes(xlb_lower(xlb_load8(text + w * 8), fold) ^ cell[w], left - w * 8);
	}
	if (differs)
		return 1;
	s->match.rest_cells--;
	return 0;
}

/* Whether text behind its first `from` bytes is what cells hold from `cell` on. */
static __always_inline int xlb_rest_is(struct xlb_match_context *c, __u32 at, __u32 len, __u32 from, __u32 cell,
				       __u64 fold)
{
	struct xlb_match_state *m = &c->s->match;

	if (!cell)
		return 0;
	m->rest_at = at + from;
	m->rest_len = len - from;
	m->rest_cell = cell;
	m->rest_fold = fold;
	m->rest_cells = (len - from + XLB_CELL - 1) / XLB_CELL;
	bpf_loop(m->rest_cells, xlb_rest_step, c, 0);
	return !m->rest_cells;
}

/* The key with a hash in the cells behind the first one where it could be; 0: there is none. */
static __noinline struct xlb_key *xlb_find_on(struct xlb_match_context *c, __u64 hash, __u8 kind)
{
	struct xlb_scratch *s = c->s;
	__u32 i;

	for (i = 1; i < XLB_MAX_PROBES; i++) {
		struct xlb_key *key = xlb_cell(c, s->match.table + (((__u32)(hash >> 32) + i) & s->match.table_mask));

		if (!key || key->kind == XLB_KEY_FREE)
			return 0;
		if (key->hash == hash && key->kind == kind)
			return key;
	}
	return 0;
}

/* The key that has a hash (without xlb_hash_end) and a length; its text is still to be compared.  0: none. */
static __always_inline struct xlb_key *xlb_find(struct xlb_match_context *c, __u64 hash, __u8 kind, __u32 scope,
						__u32 len)
{
	struct xlb_scratch *s = c->s;
	struct xlb_key *key;

	hash = xlb_hash_end(hash, kind, scope);
	key = xlb_cell(c, s->match.table + ((__u32)(hash >> 32) & s->match.table_mask));
	if (!key || key->kind == XLB_KEY_FREE)
		return 0;
	if (key->hash != hash || key->kind != kind) {
		key = xlb_find_on(c, hash, kind);
		if (!key)
			return 0;
	}
	return key->scope == scope && key->len == len ? key : 0;
}

/* The value of the key if its text is the one at an offset, else 0.  fold: ~0 to compare letters in any case.
 *
 * Keys behind it with the same hash are not looked for: that two of them agree in 64 bits under a random seed is not a
 * case, and that a request brings a text that agrees is what the comparison is for. */
static __always_inline __u32 xlb_value(struct xlb_match_context *c, struct xlb_key *key, __u32 at, __u64 fold)
{
	const __u8 *text = xlb_text_at(c->s, at);
	__u32 len = key->len, w;
	__u64 differs = 0;

	for (w = 0; w < XLB_KEY_WORDS; w++) {
		if (w * 8 >= len)
			break;
		differs |= xlb_first_bytes(xlb_lower(xlb_load8(text + w * 8), fold) ^ ((__u64 *)key->text)[w],
					   len - w * 8);
	}
	if (differs)
		return 0;
	if (len > sizeof(key->text) && !xlb_rest_is(c, at, len, sizeof(key->text), key->more, fold))
		return 0;
	return key->value;
}

/* ---- header names ---------------------------------------------------------------------------------------------- */
static __always_inline __u64 xlb_name_hash(const struct xlb_scratch *s, __u32 at, __u32 len)
{
	/* Behind the buffer there is more than a key is long. */
	const __u8 *p = s->buf + xlb_at_most(at, XLB_MAX_HEAD);
	__u64 hash = s->seed, i, n = xlb_at_most(len, XLB_MAX_KEY);

	for (i = 0; i < n; i++) {
		__u8 c = p[i];

		hash = xlb_hash_step(hash, c | (xlb_chars[c] & XLB_CHAR_UPPER));
	}
	return hash;
}

static long xlb_slot_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	__u32 at, len, slot;
	struct xlb_key *key;

	if (i >= XLB_MAX_HEADERS)
		return 1;
	at = s->line[i].name;
	len = s->line[i].name_len;
	if (len > XLB_MAX_KEY)
		return 0;
	key = xlb_find(c, xlb_name_hash(s, at, len), XLB_KEY_HEADER_NAME, 0, len);
	if (!key)
		return 0;
	slot = xlb_value(c, key, at, ~0ull);
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

/* What is looked for is in s->match: text_kind, text_scope, text_at, text_len. */
static __always_inline struct xlb_key *xlb_find_prefix(struct xlb_match_context *c, __u32 i)
{
	struct xlb_scratch *s = c->s;
	__u64 len = c->lengths->len[i], hash;
	__u8 kind = s->match.text_kind;

	if (len > s->match.text_len)
		return 0;
	len = xlb_at_most(len, XLB_MAX_KEY);
	hash = kind == XLB_KEY_PATH_PREFIX ? s->path_hash[len] : s->host_hash[len];
	return xlb_find(c, hash, kind, s->match.text_scope, len);
}

static long xlb_longest_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_key *key;

	if (i >= XLB_MAX_LENGTHS)
		return 1;
	key = xlb_find_prefix(c, i);
	if (!key)
		return 0;
	s->match.found = xlb_value(c, key, s->match.text_at, s->match.text_kind == XLB_KEY_PATH_PREFIX ? 0 : ~0ull);
	return s->match.found != 0;
}

/* The value of the key with the longest of several lengths; 0: none. */
static __always_inline __u32 xlb_longest(struct xlb_match_context *c, __u32 lengths_cell)
{
	c->s->match.found = 0;
	c->lengths = xlb_cell(c, lengths_cell);
	if (c->lengths)
		bpf_loop(c->lengths->n, xlb_longest_step, c, 0);
	return c->s->match.found;
}

/* ---- virtual host ------------------------------------------------------------------------------------------------ */
static long xlb_host_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	__u32 n = s->match.host_len;
	__u64 to = xlb_at_most(i, XLB_MAX_KEY - 1);
	__u8 b = *xlb_text_at(s, s->head.host + (s->match.backwards ? n - 1 - i : i));

	b |= xlb_chars[b] & XLB_CHAR_UPPER;
	s->match.hash = xlb_hash_step(s->match.hash, b);
	s->host_hash[to + 1] = s->match.hash;
	if (s->match.backwards)
		s->host_back[to] = b;
	return 0;
}

/* Running hashes of the host, from one end or the other. */
static __always_inline void xlb_host_hashes(struct xlb_match_context *c, int backwards)
{
	struct xlb_scratch *s = c->s;
	__u32 n = s->match.host_len;

	s->match.backwards = backwards;
	s->match.hash = s->seed;
	s->host_hash[0] = s->seed;
	bpf_loop(n < XLB_MAX_KEY ? n : XLB_MAX_KEY, xlb_host_step, c, 0);
}

/* Cell of the virtual host with the longest wildcard; 0: none. */
static __noinline __u32 xlb_wildcard_host(struct xlb_match_context *c, __u32 suffix_lens, __u32 prefix_lens)
{
	struct xlb_scratch *s = c->s;
	__u32 found = 0;

	s->match.text_scope = 0;
	/* A wildcard stands for at least one character. */
	s->match.text_len = s->match.host_len - 1;
	if (suffix_lens) {
		s->match.text_kind = XLB_KEY_HOST_SUFFIX;
		s->match.text_at = XLB_HOST_BACK;
		xlb_host_hashes(c, 1);
		found = xlb_longest(c, suffix_lens);
	}
	if (!found && prefix_lens) {
		s->match.text_kind = XLB_KEY_HOST_PREFIX;
		s->match.text_at = s->head.host;
		xlb_host_hashes(c, 0);
		found = xlb_longest(c, prefix_lens);
	}
	return found;
}

/* Cell of the virtual host; 0: none. */
static __always_inline __u32 xlb_virtual_host(struct xlb_match_context *c, struct xlb_image_header *header)
{
	struct xlb_scratch *s = c->s;
	__u32 found, len = s->head.host_len;
	__u64 hash = s->head.host_hash;
	struct xlb_key *key;

	if (header->flags & XLB_IMAGE_ANY_HOST)
		return header->default_vhost;
	if (header->flags & XLB_IMAGE_IGNORE_PORT) {
		len = s->head.host_name_len;
		hash = s->head.host_name_hash;
	}
	if (len <= XLB_MAX_KEY) {
		key = xlb_find(c, hash, XLB_KEY_HOST_EXACT, 0, len);
		found = key ? xlb_value(c, key, s->head.host, ~0ull) : 0;
		if (found)
			return found;
	}
	if (header->suffix_lens || header->prefix_lens) {
		s->match.host_len = len;
		found = xlb_wildcard_host(c, header->suffix_lens, header->prefix_lens);
		if (found)
			return found;
	}
	return header->default_vhost;
}

/* ---- route ------------------------------------------------------------------------------------------------------- */

/* Cell of the list of candidates; 0: none. */
static __always_inline __u32 xlb_candidates(struct xlb_match_context *c, struct xlb_vhost *vhost)
{
	struct xlb_scratch *s = c->s;
	__u32 found, i, len = s->head.path_len;
	struct xlb_key *key = 0;

	s->match.text_kind = XLB_KEY_PATH_PREFIX;
	s->match.text_scope = vhost->index;
	s->match.text_at = s->head.target;
	s->match.text_len = len;
	if (vhost->has_exact && len <= XLB_MAX_KEY)
		key = xlb_find(c, s->path_hash[xlb_at_most(len, XLB_MAX_KEY)], XLB_KEY_PATH_EXACT, vhost->index, len);
	if (!key && vhost->lens) {
		c->lengths = xlb_cell(c, vhost->lens);
		if (!c->lengths)
			return 0;
		for (i = 0; i < XLB_MAX_LENGTHS; i++) {
			if (i >= c->lengths->n)
				break;
			key = xlb_find_prefix(c, i);
			if (key)
				break;
		}
	}
	if (!key)
		return vhost->any_list;
	found = xlb_value(c, key, s->head.target, 0);
	if (found)
		return found;
	/* A text that only has the hash of a key: once more, comparing each. */
	return (vhost->lens ? xlb_longest(c, vhost->lens) : 0) ?: vhost->any_list;
}

static __always_inline int xlb_predicate_holds(struct xlb_match_context *c, __u32 number)
{
	struct xlb_scratch *s = c->s;
	struct xlb_predicate *predicate = xlb_cell(c, number);
	__u32 at = 0, len = s->head.method_len, line, w;
	__u64 differs = 0;
	const __u8 *text;

	if (!predicate)
		return 0;
	if (predicate->slot) {
		line = s->slot[predicate->slot & (XLB_MAX_SLOTS - 1)];
		if (predicate->kind == XLB_PRED_PRESENT)
			return !line != !predicate->invert;
		if (!line || line > XLB_MAX_HEADERS)
			return 0;
		at = s->line[line - 1].value;
		len = s->line[line - 1].value_len;
	} else if (predicate->kind == XLB_PRED_PRESENT) {
		return !predicate->invert;
	}
	if (len != predicate->len)
		return 0;
	text = xlb_text_at(s, at);
	for (w = 0; w < XLB_VALUE_TEXT_WORDS; w++) {
		if (w * 8 >= len)
			break;
		differs |= xlb_first_bytes(xlb_load8(text + w * 8) ^ ((__u64 *)predicate->text)[w], len - w * 8);
	}
	if (differs)
		return 0;
	return len <= sizeof(predicate->text) || xlb_rest_is(c, at, len, sizeof(predicate->text), predicate->more, 0);
}

static long xlb_predicate_step(__u32 i, struct xlb_match_context *c)
{
	__u32 number = c->s->match.predicate;

	if (!xlb_predicate_holds(c, number)) {
		c->s->match.failed = 1;
		return 1;
	}
	c->s->match.predicate = number + 1;
	return 0;
}

/* A route that the walk ends with, without a look at the request. */
static __always_inline int xlb_takes_all(struct xlb_route *route)
{
	return !route->predicates || (route->flags & XLB_ROUTE_UNDECIDED);
}

/* Candidate number i; the loop ends with the first that is undecided or matches. */
static long xlb_route_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_list *list = xlb_cell(c, s->match.list + (i + 1) / XLB_LIST_WORDS);
	__u32 number = list ? list->word[(i + 1) % XLB_LIST_WORDS] : 0;
	struct xlb_route *route = xlb_cell(c, number);

	if (!route || !number) {
		s->match.reason = XLB_REASON_NO_IMAGE;
		return 1;
	}
	if (!xlb_takes_all(route)) {
		/* Nearly always there is one. */
		if (!xlb_predicate_holds(c, route->predicate))
			return 0;
		s->match.failed = 0;
		s->match.predicate = route->predicate + 1;
		if (route->predicates > 1)
			bpf_loop(route->predicates - 1, xlb_predicate_step, c, 0);
		if (s->match.failed)
			return 0;
	}
	s->match.route = number;
	return 1;
}

/* The first candidate that is undecided or matches.  0: none, s->match.reason says why. */
static __always_inline struct xlb_route *xlb_choose_route(struct xlb_match_context *c, __u32 list_cell)
{
	struct xlb_scratch *s = c->s;
	struct xlb_list *list = xlb_cell(c, list_cell);
	struct xlb_route *route;

	s->match.reason = XLB_REASON_NO_IMAGE;
	if (!list || !list->word[0])
		return 0;
	/* Most often the first one takes every request. */
	route = xlb_cell(c, list->word[1]);
	if (!route || xlb_takes_all(route))
		return route;
	s->match.reason = XLB_REASON_NO_ROUTE;
	s->match.route = 0;
	s->match.list = list_cell;
	bpf_loop(list->word[0], xlb_route_step, c, 0);
	if (!s->match.route)
		return 0;
	return xlb_cell(c, s->match.route);
}

/* ---- cluster ----------------------------------------------------------------------------------------------------- */
static long xlb_weighted_step(__u32 i, struct xlb_match_context *c)
{
	struct xlb_scratch *s = c->s;
	struct xlb_weighted *cell = xlb_cell(c, s->match.weighted + i);
	__u32 k;

	if (!cell)
		return 1;
	for (k = 0; k < XLB_WEIGHTED_CELL; k++) {
		if (s->match.left < cell->entry[k].cumulative) {
			s->match.cluster = cell->entry[k].cluster;
			return 1;
		}
	}
	return 0;
}

/* Cell of the cluster; 0: none. */
static __always_inline __u32 xlb_choose_cluster(struct xlb_match_context *c, struct xlb_route *route, __u32 random)
{
	struct xlb_scratch *s = c->s;

	if (route->clusters == 1)
		return route->cluster;
	if (!route->weight_sum)
		return 0;
	s->match.cluster = 0;
	s->match.weighted = route->cluster;
	s->match.left = random % route->weight_sum;
	bpf_loop((route->clusters + XLB_WEIGHTED_CELL - 1) / XLB_WEIGHTED_CELL, xlb_weighted_step, c, 0);
	return s->match.cluster;
}

/* What becomes of the request that xlb_parse_head has read into s.  Fills `out`, answers its reason.
 *
 * image: inner map of xlb_images.  random: for the choice among weighted clusters, modulo the sum of the weights.
 * A cell that is not there is NO_IMAGE: the image is not what its builder has written. */
static __noinline int xlb_match(void *image, struct xlb_scratch *s, __u32 random, struct xlb_decision *out)
{
	struct xlb_match_context c = { s, image };
	struct xlb_image_header *header = xlb_cell(&c, 0);
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
	number = xlb_virtual_host(&c, header);
	if (!number)
		return out->reason = XLB_REASON_NO_VIRTUAL_HOST;
	vhost = xlb_cell(&c, number);
	if (!vhost)
		return out->reason = XLB_REASON_NO_IMAGE;
	if (vhost->reason)
		return out->reason = vhost->reason;
	number = xlb_candidates(&c, vhost);
	if (!number)
		return out->reason = XLB_REASON_NO_ROUTE;
	route = xlb_choose_route(&c, number);
	if (!route)
		return out->reason = s->match.reason;
	out->route = route->index;
	if (route->reason)
		return out->reason = route->reason;
	number = xlb_choose_cluster(&c, route, random);
	cluster = xlb_cell(&c, number);
	if (!cluster || !number)
		return out->reason = XLB_REASON_NO_IMAGE;
	out->cluster = number;
	return out->reason = cluster->reason;
}

#endif
