/* Tools of the host's: at once, later from another thread, twice, never, too late. */
#include "check.h"

static int32_t fails(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)user, (void)call;
    te_tool_reply_free(reply);
    return 3;
}

static int32_t fails_and_keeps(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)call;
    *(te_tool_reply **)user = reply;
    return 7;
}

/* Says itself that it is broken. */
static int32_t broken(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)user, (void)call;
    GIVES(TE_INVALID_ARGUMENT, te_tool_reply_fail(reply, NULL, 0));
    OK(te_tool_reply_fail(reply, TE_STR("no database")));
    GIVES(TE_ALREADY_ANSWERED, te_tool_reply_fail(reply, TE_STR("again")));
    te_tool_reply_free(reply);
    return 0;
}

static int32_t checks(void *user, const te_tool_call *call, te_tool_reply *reply) {
    (void)user;
    CHECK(is_text(call->name, call->name_len, "checks"));
    CHECK(is_text(call->trajectory, call->trajectory_len, "trajectory"));
    CHECK(is_text(call->uniq_id, call->uniq_id_len, "id"));
    CHECK(is_text(call->arguments, call->arguments_len, "{\"a\":1}"));
    CHECK(call->remaining_s > 0 && call->remaining_s <= 600);
    GIVES(TE_INVALID_UTF8, te_tool_reply_ok(reply, "\xff", 1));
    GIVES(TE_NULL, te_tool_reply_ok(reply, NULL, 1));
    GIVES(TE_INVALID_ARGUMENT, te_tool_reply_error(reply, NULL, 0));
    OK(te_tool_reply_ok(reply, NULL, 0));
    GIVES(TE_ALREADY_ANSWERED, te_tool_reply_ok(reply, TE_STR("again")));
    GIVES(TE_ALREADY_ANSWERED, te_tool_reply_error(reply, TE_STR("again")));
    te_tool_reply_free(reply);
    return 1; /* too late to matter */
}

/* A tool that makes a call itself, of another trajectory. */
static int32_t nests(void *user, const te_tool_call *call, te_tool_reply *reply) {
    te_result *result;
    (void)call;
    OK(te_execute(*(te_executor **)user, TE_STR("inner"), ECHO_CALL, &result));
    OK(te_tool_reply_ok(reply, result->output, result->output_len));
    te_result_free(result);
    te_tool_reply_free(reply);
    return 0;
}

struct job {
    te_tool_reply *reply;
    int32_t status;
};

static void *answers(void *data) {
    struct job *job = (struct job *)data;
    job->status = te_tool_reply_ok(job->reply, TE_STR("from a thread"));
    return NULL;
}

static te_outcome outcome(te_executor *executor, const char *call) {
    te_result *result;
    OK(te_execute(executor, TE_STR("t"), TE_STR(call), &result));
    te_outcome outcome = result->outcome;
    te_result_free(result);
    return outcome;
}

int main(void) {
    shelf s;
    te_tools *tools;
    te_executor *executor, *second;
    te_tool_reply *kept = NULL;
    te_queue *queue;
    te_result *result;
    int32_t wanted;

    watchdog();
    shelf_init(&s);
    OK(te_tools_new(&tools));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"echo\"}"), echo_tool, NULL, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"fails\"}"), fails, NULL, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"broken\"}"), broken, NULL, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"keeps\"}"), fails_and_keeps, &kept, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"nests\"}"), nests, &executor, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"later\"}"), shelf_tool, &s, shelf_free));
    OK(te_tools_add(tools,
                    TE_STR("{\"name\": \"checks\", \"description\": \"d\", \"parameters\": {\"a\": "
                           "{\"type\": \"number\"}}, \"required\": [\"a\"]}"),
                    checks, NULL, NULL));
    OK(te_executor_new(TE_STR("{\"handler_threads\": 2}"), tools, &executor));
    OK(te_executor_new(TE_STR("{}"), tools, &second));
    te_tools_free(tools);

    OK(te_execute(executor, TE_STR("trajectory"),
                  TE_STR("{\"name\": \"checks\", \"arguments\": {\"a\": 1}, \"uniq_id\": \"id\"}"),
                  &result));
    CHECK(result->outcome == TE_OUTCOME_OK && result->output_len == 0);
    te_result_free(result);
    CHECK(outcome(executor, "{\"name\": \"checks\"}") == TE_OUTCOME_INVALID_CALL);
    CHECK(outcome(executor, "{\"name\": \"fails\"}") == TE_OUTCOME_EXTERNAL_FAILED);
    OK(te_execute(executor, TE_STR("t"), TE_STR("{\"name\": \"broken\"}"), &result));
    CHECK(result->outcome == TE_OUTCOME_EXTERNAL_FAILED && !result->model_attributable);
    CHECK(is_text(result->error, result->error_len, "no database"));
    te_result_free(result);
    CHECK(outcome(executor, "{\"name\": \"keeps\"}") == TE_OUTCOME_EXTERNAL_FAILED);
    GIVES(TE_ALREADY_ANSWERED, te_tool_reply_ok(kept, TE_STR("x")));
    te_tool_reply_free(kept);
    CHECK(outcome(executor, "{\"name\": \"nests\"}") == TE_OUTCOME_OK);

    /* Far more calls without an answer than there are threads. */
    enum { MANY = 200 };
    struct job jobs[2];
    pthread_t threads[2];
    char name[16];
    OK(te_queue_new(executor, MANY, &queue));
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "t%d", i);
        OK(te_submit(queue, TE_STR(name), LATER_CALL, (uint64_t)i, NULL));
    }
    /* Two threads answer the same call: one does. */
    jobs[0].reply = jobs[1].reply = shelf_take(&s, MANY);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, answers, &jobs[i]) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(jobs[0].status + jobs[1].status == TE_ALREADY_ANSWERED);
    OK(te_tool_reply_wanted(jobs[0].reply, &wanted));
    CHECK(wanted == 0);
    te_tool_reply_free(jobs[0].reply);
    OK(te_queue_next(queue, 60, &result));
    CHECK(is_text(result->output, result->output_len, "from a thread"));
    te_result_free(result);
    /* Freed without an answer: an outcome, and no waiting. */
    for (size_t i = MANY - 1; i > 0; i--) {
        te_tool_reply_free(shelf_take(&s, i));
        OK(te_queue_next(queue, 60, &result));
        CHECK(result->outcome == TE_OUTCOME_EXTERNAL_FAILED);
        te_result_free(result);
    }
    te_queue_free(queue);

    /* One that is never answered is out of time. */
    CHECK(outcome(executor, "{\"name\": \"later\", \"timeout_s\": 1}") == TE_OUTCOME_TIMEOUT);
    te_tool_reply *late = shelf_take(&s, 1);
    OK(te_tool_reply_wanted(late, &wanted));
    CHECK(wanted == 0);

    te_executor_free(executor);
    CHECK(s.freed == 0);
    te_executor_free(second);
    OK(te_tool_reply_ok(late, TE_STR("x")));
    te_tool_reply_free(late);
    CHECK(s.freed == 1);
    shelf_done(&s);
    puts("tools: ok");
    return 0;
}
