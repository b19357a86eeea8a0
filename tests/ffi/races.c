/* Threads that submit, fetch, cancel, release, ask, close and free at the same time; small stacks;
 * threads that end after the executor. */
#include <sched.h>

#include "check.h"

enum { SUBMITTERS = 3, FETCHERS = 2 };

static te_executor *executor;
static te_queue *queue;
static long submitted, fetched;
static int closing;

static void *submits(void *data) {
    char name[32];
    long n = 0;
    for (;; n++) {
        te_call *call;
        snprintf(name, sizeof name, "t%p-%ld", data, n % 5);
        te_status status = te_submit(queue, TE_STR(name), ECHO_CALL, 1, n % 3 ? NULL : &call);
        if (status == TE_CLOSED) return NULL;
        CHECK(status == TE_OK || status == TE_COMPLETIONS_FULL || status == TE_QUEUE_FULL);
        if (status == TE_OK) {
            __atomic_add_fetch(&submitted, 1, __ATOMIC_RELAXED);
            if (n % 3 == 0) {
                if (n % 2) OK(te_call_cancel(call));
                te_call_free(call);
            }
        }
        if (n % 7 == 0) {
            status = te_submit_release(executor, TE_STR(name), 1);
            CHECK(status == TE_OK || status == TE_CLOSED);
        }
    }
}

static void *fetches(void *data) {
    te_result *results[5];
    size_t count;
    (void)data;
    for (;;) {
        te_status status = te_queue_next_many(queue, 5, 1000, results, &count);
        if (status == TE_CLOSED) return NULL;
        CHECK(status == TE_OK);
        for (size_t i = 0; i < count; i++) te_result_free(results[i]);
        __atomic_add_fetch(&fetched, (long)count, __ATOMIC_RELAXED);
    }
}

static void *asks(void *data) {
    te_buffer buffer;
    size_t n;
    (void)data;
    while (!__atomic_load_n(&closing, __ATOMIC_RELAXED)) {
        OK(te_stats(executor, &buffer));
        te_buffer_free(&buffer);
        OK(te_queue_outstanding(queue, &n));
        CHECK(n <= 100);
        GIVES(TE_INVALID_JSON, te_submit(queue, TE_STR("t"), TE_STR("{"), 0, NULL));
        CHECK(strstr(te_last_error(), "the call"));
    }
    return NULL;
}

static void *closes(void *data) {
    (void)data;
    OK(te_executor_close(executor, 20, NULL, NULL));
    return NULL;
}

/* As many calls as there may be, then a close by two threads at once. */
static void round_of(int calls) {
    shelf s;
    pthread_t threads[SUBMITTERS + FETCHERS + 3];
    size_t n = 0;
    shelf_init(&s);
    executor = with_tools(&s, "{\"queue_capacity\": 60}");
    OK(te_queue_new(executor, 100, &queue));
    submitted = fetched = closing = 0;
    for (long i = 0; i < SUBMITTERS; i++)
        CHECK(pthread_create(&threads[n++], NULL, submits, (void *)(i + 1)) == 0);
    for (int i = 0; i < FETCHERS; i++) CHECK(pthread_create(&threads[n++], NULL, fetches, NULL) == 0);
    CHECK(pthread_create(&threads[n++], NULL, asks, NULL) == 0);
    while (__atomic_load_n(&fetched, __ATOMIC_RELAXED) < calls) sched_yield();
    __atomic_store_n(&closing, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[n++], NULL, closes, NULL) == 0);
    while (n) CHECK(pthread_join(threads[--n], NULL) == 0);
    CHECK(submitted == fetched);
    te_queue_free(queue);
    te_executor_free(executor);
    shelf_done(&s);
}

struct waiter {
    te_queue *queue;
    int inside; /* fds of a pipe: told just before it goes in */
};

static void *waits(void *data) {
    struct waiter *w = (struct waiter *)data;
    te_result *result;
    CHECK(write(w->inside, "x", 1) == 1);
    te_status status;
    do {
        status = te_queue_next(w->queue, 1000, &result);
        if (status == TE_OK) te_result_free(result);
    } while (status == TE_OK);
    CHECK(status == TE_CLOSED);
    return NULL;
}

/* The executor's handle freed under the feet of a thread that waits; the queue's after it. */
static void freed_while_in_use(void) {
    shelf s;
    pthread_t thread;
    int fds[2];
    char byte;
    struct waiter w;
    shelf_init(&s);
    CHECK(pipe(fds) == 0);
    executor = with_tools(&s, "{\"close_timeout_s\": 0}");
    OK(te_queue_new(executor, 2, &w.queue));
    w.inside = fds[1];
    OK(te_submit(w.queue, TE_STR("t"), LATER_CALL, 1, NULL));
    CHECK(pthread_create(&thread, NULL, waits, &w) == 0);
    CHECK(read(fds[0], &byte, 1) == 1);
    te_tool_reply *reply = shelf_take(&s, 1);
    te_executor_free(executor);
    CHECK(pthread_join(thread, NULL) == 0);
    te_queue_free(w.queue);
    te_tool_reply_free(reply);
    close(fds[0]), close(fds[1]);
    CHECK(s.freed == 1);
    shelf_done(&s);
}

static void *small(void *data) {
    te_result *result;
    te_buffer buffer;
    char deep[1000];
    memset(deep, '[', sizeof deep);
    OK(te_execute((te_executor *)data, TE_STR("small"), ECHO_CALL, &result));
    te_result_free(result);
    GIVES(TE_INVALID_JSON, te_execute((te_executor *)data, TE_STR("t"), deep, sizeof deep, &result));
    OK(te_stats((te_executor *)data, &buffer));
    te_buffer_free(&buffer);
    OK(te_describe((te_executor *)data, &buffer));
    te_buffer_free(&buffer);
    return NULL;
}

static void *small_start(void *data) {
    shelf *s = (shelf *)data;
    te_executor *mine = with_tools(s, "{}");
    small(mine);
    te_executor_free(mine);
    return NULL;
}

/* With the stack that the header asks for. */
static void small_stacks(void) {
    shelf s;
    pthread_t thread;
    pthread_attr_t attributes;
    shelf_init(&s);
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, 128 * 1024) == 0);
    executor = with_tools(&s, "{}");
    CHECK(pthread_create(&thread, &attributes, small, executor) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    te_executor_free(executor);
    CHECK(pthread_create(&thread, &attributes, small_start, &s) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_attr_destroy(&attributes);
    shelf_done(&s);
}

int main(void) {
    watchdog();
    for (int i = 0; i < few(20, 2); i++) round_of(few(2000, 50));
    small_stacks();
    for (int i = 0; i < few(50, 2); i++) freed_while_in_use();
    puts("races: ok");
    return 0;
}
