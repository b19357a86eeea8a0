/* What the test programs share: checks, a watchdog, and a tool that is answered when the test says
 * so. */
#ifndef TE_TEST_CHECK_H
#define TE_TEST_CHECK_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool_executor.h"
#include "tool_executor.h" /* twice does no harm */

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #what,            \
                    te_last_error());                                                              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define GIVES(wanted, call)                                                                        \
    do {                                                                                           \
        te_status given_ = (call);                                                                 \
        if (given_ != (wanted)) {                                                                  \
            fprintf(stderr, "%s:%d: %s\n  gives %s, not %s: %s\n", __FILE__, __LINE__, #call,      \
                    te_status_name(given_), te_status_name(wanted), te_last_error());              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define OK(call) GIVES(TE_OK, call)

/* Ends the program, by SIGALRM, if it hangs. The harness has a longer limit. */
static inline void watchdog(void) { alarm(240); }

/* Fewer rounds, where each takes long: under valgrind. */
static inline int few(int many, int less) { return getenv("TE_TEST_FEW") ? less : many; }

static inline int is_text(const char *text, size_t len, const char *wanted) {
    return len == strlen(wanted) && memcmp(text, wanted, len) == 0;
}

static inline int has_text(const char *text, size_t len, const char *wanted) {
    size_t n = strlen(wanted);
    for (size_t i = 0; i + n <= len; i++)
        if (memcmp(text + i, wanted, n) == 0) return 1;
    return 0;
}

/* A tool that answers at once with its own arguments. */
static inline int32_t echo_tool(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)user;
    OK(te_tool_reply_ok(reply, call->arguments, call->arguments_len));
    te_tool_reply_free(reply);
    return 0;
}

/* A place where a tool's replies wait until the test takes them. */
typedef struct shelf {
    pthread_mutex_t lock;
    pthread_cond_t more;
    te_tool_reply **replies;
    size_t count, room;
    int freed;
} shelf;

static inline void shelf_init(shelf *s) {
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
}

/* A tool that puts its reply on a shelf. */
static inline int32_t shelf_tool(void *user, const te_tool_call *call, te_tool_reply *reply) {
    shelf *s = (shelf *)user;
    (void)call;
    pthread_mutex_lock(&s->lock);
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 16;
        s->replies = (te_tool_reply **)realloc(s->replies, s->room * sizeof *s->replies);
        CHECK(s->replies);
    }
    s->replies[s->count++] = reply;
    pthread_cond_broadcast(&s->more);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* Waits until so many replies are there, and takes the last. */
static inline te_tool_reply *shelf_take(shelf *s, size_t when) {
    te_tool_reply *reply;
    pthread_mutex_lock(&s->lock);
    while (s->count < when) pthread_cond_wait(&s->more, &s->lock);
    reply = s->replies[--s->count];
    pthread_mutex_unlock(&s->lock);
    return reply;
}

static inline void shelf_free(void *user) {
    shelf *s = (shelf *)user;
    s->freed++;
}

static inline void shelf_done(shelf *s) {
    CHECK(s->count == 0);
    free(s->replies);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
}

/* An executor with the tools "echo" and "later", and no sandbox. */
static inline te_executor *with_tools(shelf *s, const char *config) {
    te_tools *tools;
    te_executor *executor;
    OK(te_tools_new(&tools));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"echo\"}"), echo_tool, NULL, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"later\"}"), shelf_tool, s, shelf_free));
    OK(te_executor_new(config, strlen(config), tools, &executor));
    te_tools_free(tools);
    return executor;
}

#define ECHO_CALL TE_STR("{\"name\": \"echo\", \"arguments\": {\"x\": 1}}")
#define LATER_CALL TE_STR("{\"name\": \"later\"}")

#endif
