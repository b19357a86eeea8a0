/* Completion queues: order, tags, capacity, the file descriptor, cancelling, closing while one
 * waits. */
#include <poll.h>

#include "check.h"

static int is_readable(int fd, int ms) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, ms) == 1;
}

static void *next_for_long(void *queue) {
    te_result *result;
    GIVES(TE_CLOSED, te_queue_next((te_queue *)queue, 1000, &result));
    CHECK(result == NULL);
    return NULL;
}

int main(void) {
    shelf s;
    te_executor *executor;
    te_queue *queue;
    te_result *result, *results[100];
    te_call *call;
    size_t count, got = 0, outstanding;
    int fd, seen[50] = {0};
    pthread_t thread;
    char name[16];

    watchdog();
    shelf_init(&s);
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, 50, &queue));
    OK(te_queue_fd(queue, &fd));
    CHECK(!is_readable(fd, 0));

    /* Fifty trajectories, from one thread that waits by poll alone. */
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "t%d", i);
        OK(te_submit(queue, TE_STR(name), ECHO_CALL, (uint64_t)i, NULL));
    }
    GIVES(TE_COMPLETIONS_FULL, te_submit(queue, TE_STR("x"), ECHO_CALL, 99, NULL));
    while (got < 50) {
        CHECK(is_readable(fd, 60000));
        OK(te_queue_next_many(queue, 7, 0, results, &count));
        CHECK(count >= 1 && count <= 7);
        for (size_t i = 0; i < count; i++) {
            CHECK(results[i]->tag < 50 && !seen[results[i]->tag]++);
            te_result_free(results[i]);
        }
        got += count;
    }
    CHECK(!is_readable(fd, 0));
    OK(te_queue_outstanding(queue, &outstanding));
    CHECK(outstanding == 0);

    /* Of two calls of one trajectory the second waits; cancelled, both end. */
    OK(te_submit(queue, TE_STR("c"), LATER_CALL, 1, &call));
    OK(te_submit(queue, TE_STR("c"), LATER_CALL, 2, NULL));
    te_tool_reply *reply = shelf_take(&s, 1);
    int32_t wanted;
    OK(te_tool_reply_wanted(reply, &wanted));
    CHECK(wanted == 1);
    OK(te_call_cancel(call));
    OK(te_queue_next(queue, 60, &result));
    CHECK(result->tag == 1 && result->outcome == TE_OUTCOME_CANCELLED);
    te_result_free(result);
    OK(te_tool_reply_wanted(reply, &wanted));
    CHECK(wanted == 0);
    te_tool_reply_free(reply);
    reply = shelf_take(&s, 1);
    OK(te_cancel_trajectory(executor, TE_STR("c")));
    OK(te_queue_next(queue, 60, &result));
    CHECK(result->tag == 2 && result->outcome == TE_OUTCOME_CANCELLED);
    te_result_free(result);
    OK(te_tool_reply_ok(reply, TE_STR("too late")));
    te_tool_reply_free(reply);
    te_call_free(call);

    /* As JSON, and from JSON. */
    te_buffer json = {(char *)"x", 1};
    GIVES(TE_TIMEOUT, te_queue_next_json(queue, 5, 0, &json));
    CHECK(json.data == NULL && json.len == 0);
    for (int i = 0; i < 3; i++) OK(te_submit(queue, TE_STR("j"), ECHO_CALL, 40 + (uint64_t)i, NULL));
    for (got = 0; got < 3;) {
        OK(te_queue_next_json(queue, 2, 60, &json));
        CHECK(json.data[0] == '[' && json.data[json.len - 1] == ']');
        for (int i = 0; i < 3; i++) {
            char begins[32];
            snprintf(begins, sizeof begins, "{\"tag\":4%d,", i);
            got += has_text(json.data, json.len, begins);
        }
        CHECK(has_text(json.data, json.len, "\"output\":\"{\\\"x\\\":1}\""));
        te_buffer_free(&json);
    }
    CHECK(!is_readable(fd, 0));
    GIVES(TE_INVALID_ARGUMENT, te_queue_next_json(queue, 0, 0, &json));
    GIVES(TE_NULL, te_queue_next_json(queue, 1, 0, NULL));

    /* Closing ends a wait in which nothing would come. */
    CHECK(pthread_create(&thread, NULL, next_for_long, queue) == 0);
    OK(te_executor_close(executor, 10, NULL, NULL));
    CHECK(pthread_join(thread, NULL) == 0);

    /* Closing with calls under way: each has a completion. */
    te_executor_free(executor);
    te_queue_free(queue);
    executor = with_tools(&s, "{\"close_timeout_s\": 0}");
    OK(te_queue_new(executor, 100, &queue));
    for (int i = 0; i < 60; i++) {
        snprintf(name, sizeof name, "t%d", i / 3);
        OK(te_submit(queue, TE_STR(name), LATER_CALL, (uint64_t)i, NULL));
    }
    reply = shelf_take(&s, 20); /* those at the front of their trajectories */
    uint64_t cancelled;
    int32_t all_ended;
    OK(te_executor_close(executor, -1, &cancelled, &all_ended));
    CHECK(cancelled == 60 && all_ended == 1);
    for (got = 0; te_queue_next(queue, 1000, &result) == TE_OK; got++) {
        CHECK(result->outcome == TE_OUTCOME_CANCELLED || result->outcome == TE_OUTCOME_NEVER_RAN);
        te_result_free(result);
    }
    CHECK(got == 60);
    te_executor_free(executor);
    te_queue_free(queue);
    OK(te_tool_reply_ok(reply, TE_STR("much too late")));
    te_tool_reply_free(reply);
    while (s.count) te_tool_reply_free(shelf_take(&s, 1));
    CHECK(s.freed == 2);

    /* A queue that is freed with calls under way and completions in it. */
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, 100, &queue));
    OK(te_submit(queue, TE_STR("a"), ECHO_CALL, 1, NULL));
    OK(te_queue_fd(queue, &fd));
    CHECK(is_readable(fd, 60000));
    OK(te_submit(queue, TE_STR("b"), LATER_CALL, 2, &call));
    reply = shelf_take(&s, 1);
    te_queue_free(queue);
    OK(te_tool_reply_error(reply, TE_STR("nobody listens")));
    te_tool_reply_free(reply);
    te_executor_free(executor);
    te_call_free(call);
    CHECK(s.freed == 3);
    shelf_done(&s);
    puts("queue: ok");
    return 0;
}
