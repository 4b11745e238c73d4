/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* RFC 9112 read a second time, slowly and plainly: what the parser lets the kernel forward must read alike here. */
#ifndef XLB_STRICT_H
#define XLB_STRICT_H

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "xlb_reading.h"

#define XLB_CHECK(condition)                                                                    \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

struct xlb_text {
	const __u8 *at;
	__u64 len;
};

static int xlb_text_is(struct xlb_text text, const char *word)
{
	return text.len == strlen(word) && !strncasecmp((const char *)text.at, word, text.len);
}

static int xlb_text_begins(struct xlb_text text, const char *word)
{
	return text.len >= strlen(word) && !strncasecmp((const char *)text.at, word, strlen(word));
}

static int xlb_text_all_of(struct xlb_text text, const char *characters)
{
	__u64 i;

	for (i = 0; i < text.len; i++)
		if (!text.at[i] || !strchr(characters, text.at[i]))
			return 0;
	return 1;
}

/* Without the blanks around it. */
static struct xlb_text xlb_text_trim(struct xlb_text text)
{
	while (text.len && (*text.at == ' ' || *text.at == '\t')) {
		text.at++;
		text.len--;
	}
	while (text.len && (text.at[text.len - 1] == ' ' || text.at[text.len - 1] == '\t'))
		text.len--;
	return text;
}

/* What is before the next separator; *text goes on behind it. */
static struct xlb_text xlb_text_cut(struct xlb_text *text, const char *separator)
{
	const __u8 *found = memmem(text->at, text->len, separator, strlen(separator));
	struct xlb_text before = *text;

	if (found) {
		before.len = found - text->at;
		text->at = found + strlen(separator);
		text->len -= before.len + strlen(separator);
	} else {
		text->at += text->len;
		text->len = 0;
	}
	return before;
}

#define XLB_DIGITS "0123456789"
#define XLB_ALPHA "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define XLB_TCHAR XLB_DIGITS XLB_ALPHA "!#$%&'*+-.^_`|~"

/* The target of a request that the kernel routes: nothing that Envoy would normalise. */
static void xlb_strict_target(struct xlb_text target)
{
	struct xlb_text rest = target, path = xlb_text_cut(&rest, "?"), segment;
	__u64 i;

	XLB_CHECK(target.at[0] == '/');
	XLB_CHECK(xlb_text_all_of(path, XLB_DIGITS XLB_ALPHA "-_.~!$&'()*+,;=:@/"));
	for (i = 0; i < rest.len; i++)
		XLB_CHECK(rest.at[i] > ' ' && rest.at[i] < 0x7f && rest.at[i] != '#');
	XLB_CHECK(!memmem(path.at, path.len, "//", 2));
	while (path.len) {
		segment = xlb_text_cut(&path, "/");
		XLB_CHECK(!xlb_text_is(segment, ".") && !xlb_text_is(segment, ".."));
	}
}

static void xlb_strict_host(struct xlb_text host)
{
	int has_port = memchr(host.at, ':', host.len) != NULL;
	struct xlb_text name = xlb_text_cut(&host, ":");

	XLB_CHECK(name.len && xlb_text_all_of(name, XLB_DIGITS XLB_ALPHA ".-_"));
	if (has_port)
		XLB_CHECK(host.len && xlb_text_all_of(host, XLB_DIGITS));
}

/* What all lines together say. */
struct xlb_strict {
	__u32 hosts, lengths, codings, close, hop;
	__u64 length;
};

static void xlb_strict_connection(struct xlb_strict *all, struct xlb_text value)
{
	struct xlb_text option;

	while (value.len) {
		option = xlb_text_trim(xlb_text_cut(&value, ","));
		if (xlb_text_is(option, "close"))
			all->close = 1;
		else if (option.len && !xlb_text_is(option, "keep-alive"))
			all->hop = 1;
	}
}

static void xlb_strict_line(struct xlb_strict *all, struct xlb_text name, struct xlb_text value, __u32 reason)
{
	__u64 i;

	XLB_CHECK(name.len && xlb_text_all_of(name, XLB_TCHAR));
	for (i = 0; i < value.len; i++)
		XLB_CHECK(value.at[i] == '\t' || (value.at[i] >= ' ' && value.at[i] != 0x7f));
	XLB_CHECK(!xlb_text_is(name, "expect") && !xlb_text_is(name, "upgrade"));
	if (xlb_text_is(name, "host")) {
		all->hosts++;
		if (!reason)
			xlb_strict_host(value);
	} else if (xlb_text_is(name, "content-length")) {
		all->lengths++;
		XLB_CHECK(value.len && value.len < 20 && xlb_text_all_of(value, XLB_DIGITS));
		for (i = 0; i < value.len; i++)
			all->length = all->length * 10 + value.at[i] - '0';
		XLB_CHECK(all->length <= 1ull << 62);
	} else if (xlb_text_is(name, "transfer-encoding")) {
		all->codings++;
		XLB_CHECK(xlb_text_is(value, "chunked"));
	} else if (xlb_text_is(name, "connection")) {
		xlb_strict_connection(all, value);
	} else if (xlb_text_is(name, "te") || xlb_text_is(name, "proxy-connection")) {
		all->hop = 1;
	} else if (!reason) {
		XLB_CHECK(!xlb_text_begins(name, "x-envoy-"));
		if (xlb_text_is(name, "content-type"))
			XLB_CHECK(value.len < 16 || memcmp(value.at, "application/grpc", 16));
	}
}

/* A head that is not relayed. */
static void xlb_strict_head(const struct xlb_scratch *s, const __u8 *bytes)
{
	const struct xlb_head *head = &s->head;
	struct xlb_text text = { bytes, head->head_len - 2 }, line, method, target, name;
	struct xlb_strict all = { 0 };
	__u32 n = 0;

	XLB_CHECK(head->head_len >= 16);
	XLB_CHECK(memmem(bytes, head->head_len, "\r\n\r\n", 4) == bytes + head->head_len - 4);
	line = xlb_text_cut(&text, "\r\n");
	method = xlb_text_cut(&line, " ");
	target = xlb_text_cut(&line, " ");
	XLB_CHECK(method.len && xlb_text_all_of(method, XLB_TCHAR) && method.len == head->method_len);
	XLB_CHECK(method.len != 7 || memcmp(method.at, "CONNECT", 7));
	XLB_CHECK(target.at == bytes + head->target && target.len == head->target_len && target.len);
	XLB_CHECK(line.len == 8 && !memcmp(line.at, "HTTP/1.1", 8));
	if (!head->reason)
		xlb_strict_target(target);
	while (text.len) {
		line = xlb_text_cut(&text, "\r\n");
		name = xlb_text_cut(&line, ":");
		line = xlb_text_trim(line);
		XLB_CHECK(n < XLB_MAX_HEADERS && n < head->nlines);
		XLB_CHECK(bytes + s->line[n].name == name.at && s->line[n].name_len == name.len);
		XLB_CHECK(s->line[n].value_len == line.len && bytes + s->line[n].value == line.at);
		xlb_strict_line(&all, name, line, head->reason);
		n++;
	}
	XLB_CHECK(n == head->nlines);
	XLB_CHECK(all.lengths + all.codings <= 1);
	XLB_CHECK(all.lengths == head->has_length && all.codings == head->chunked && all.length == head->length);
	XLB_CHECK(all.close == head->close && !head->close == !head->close_at);
	if (head->close)
		XLB_CHECK(!strncasecmp((const char *)bytes + head->close_at, "close", 5));
	XLB_CHECK(head->is_head == (method.len == 4 && !memcmp(method.at, "HEAD", 4)));
	if (!head->reason)
		XLB_CHECK(all.hosts == 1 && !all.hop);
}

/* Where a chunked body ends; 0: it does not, or is none. */
static __u64 xlb_strict_chunks(const __u8 *bytes, __u64 size)
{
	struct xlb_text text = { bytes, size }, line, digits;
	__u64 i, chunk = 1;

	while (chunk) {
		if (!memmem(text.at, text.len, "\r\n", 2))
			return 0;
		line = xlb_text_cut(&text, "\r\n");
		for (i = 0; i < line.len; i++)
			if (line.at[i] != '\t' && (line.at[i] < ' ' || line.at[i] == 0x7f))
				return 0;
		digits = xlb_text_cut(&line, ";");
		while (digits.len && (digits.at[digits.len - 1] == ' ' || digits.at[digits.len - 1] == '\t'))
			digits.len--;
		if (!digits.len || digits.len > 16 || !xlb_text_all_of(digits, XLB_DIGITS "abcdefABCDEF"))
			return 0;
		for (chunk = 0, i = 0; i < digits.len; i++)
			chunk = chunk << 4 |
				(digits.at[i] <= '9' ? digits.at[i] - '0' : (digits.at[i] | 0x20) - 'a' + 10);
		if (!chunk)
			break;
		if (chunk > size || text.len < chunk + 2 || memcmp(text.at + chunk, "\r\n", 2))
			return 0;
		text.at += chunk + 2;
		text.len -= chunk + 2;
	}
	for (;;) { /* trailers */
		if (!memmem(text.at, text.len, "\r\n", 2))
			return 0;
		line = xlb_text_cut(&text, "\r\n");
		if (!line.len)
			return text.at - bytes;
		for (i = 0; i < line.len; i++)
			if (line.at[i] != '\t' && (line.at[i] < ' ' || line.at[i] == 0x7f))
				return 0;
		if (!memchr(line.at, ':', line.len))
			return 0;
		digits = xlb_text_cut(&line, ":");
		if (!digits.len || !xlb_text_all_of(digits, XLB_TCHAR))
			return 0;
	}
}

#endif
