/* Every function with every wrong argument: a status, never a crash, and the places are set. */
#include "check.h"

#define BAD "\xff\xfe"

static const size_t WRONG[] = {(size_t)-1, (size_t)-2, ((size_t)-1) / 2 + 1};

static int is_error(void) { return strlen(te_last_error()) > 0; }

static void configurations(void) {
    static const struct {
        const char *json;
        te_status status;
        const char *words;
    } CASES[] = {
        {"", TE_INVALID_JSON, "configuration"},
        {"{", TE_INVALID_JSON, "configuration"},
        {"nonsense", TE_INVALID_JSON, "configuration"},
        {"[]", TE_INVALID_CONFIG, "configuration"},
        {"{\"slotz\": 1}", TE_INVALID_CONFIG, "slotz"},
        {"{\"local\": {\"slotz\": 1}}", TE_INVALID_CONFIG, "slotz"},
        {"{\"local\": {\"slots\": 0}}", TE_INVALID_CONFIG, "slots is 0"},
        {"{\"local\": {\"slots\": -1}}", TE_INVALID_CONFIG, "-1"},
        {"{\"local\": {}, \"fleet\": {\"urls\": [\"http://localhost:1\"]}}", TE_INVALID_CONFIG, "give one of"},
        {"{\"fleet\": {\"urls\": [\"ftp://x\"]}}", TE_INVALID_CONFIG, "ftp"},
        {"{\"tool_server\": {\"url\": \"http://127.0.0.1:1\"}}", TE_TOOL_SERVER_FAILED, "ToolServer"},
        {"{\"queue_capacity\": 0}", TE_INVALID_CONFIG, "queue_capacity"},
        {"{\"acquire_timeout_s\": 1e99}", TE_INVALID_CONFIG, "seconds"},
        {"{\"close_timeout_s\": null, \"io_threads\": 1000}", TE_INVALID_CONFIG, "io_threads"},
        {"{\"tools\": {\"external\": [{\"name\": \"bash\"}]}}", TE_INVALID_CONFIG, "bash"},
    };
    te_executor *executor = (te_executor *)&executor;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        GIVES(CASES[i].status, te_executor_new(TE_STR(CASES[i].json), NULL, &executor));
        CHECK(executor == NULL && strstr(te_last_error(), CASES[i].words));
    }
    GIVES(TE_NULL, te_executor_new(TE_STR("{}"), NULL, NULL));
    GIVES(TE_NULL, te_executor_new(NULL, 2, NULL, &executor));
    GIVES(TE_INVALID_JSON, te_executor_new(NULL, 0, NULL, &executor));
    GIVES(TE_INVALID_UTF8, te_executor_new(BAD, 2, NULL, &executor));
    for (size_t i = 0; i < 3; i++)
        GIVES(TE_INVALID_ARGUMENT, te_executor_new("{}", WRONG[i], NULL, &executor));
    /* Deep nesting ends in an error, not at the stack's end. */
    char *deep = (char *)malloc(1 << 20);
    CHECK(deep);
    memset(deep, '[', 1 << 20);
    GIVES(TE_INVALID_JSON, te_executor_new(deep, 1 << 20, NULL, &executor));
    free(deep);
}

static void tools(void) {
    te_tools *tools;
    te_executor *executor;
    int freed = 0;
    GIVES(TE_NULL, te_tools_new(NULL));
    OK(te_tools_new(&tools));
    GIVES(TE_NULL, te_tools_add(NULL, TE_STR("{\"name\": \"a\"}"), echo_tool, NULL, NULL));
    GIVES(TE_NULL, te_tools_add(tools, TE_STR("{\"name\": \"a\"}"), NULL, &freed, NULL));
    GIVES(TE_NULL, te_tools_add(tools, NULL, 3, echo_tool, NULL, NULL));
    GIVES(TE_INVALID_UTF8, te_tools_add(tools, BAD, 2, echo_tool, NULL, NULL));
    GIVES(TE_INVALID_JSON, te_tools_add(tools, TE_STR("{}"), echo_tool, NULL, NULL));
    GIVES(TE_INVALID_JSON, te_tools_add(tools, TE_STR("{\"name\": 1}"), echo_tool, NULL, NULL));
    GIVES(TE_INVALID_JSON,
          te_tools_add(tools, TE_STR("{\"name\": \"a\", \"x\": 1}"), echo_tool, NULL, NULL));
    GIVES(TE_INVALID_TOOL, te_tools_add(tools, TE_STR("{\"name\": \"a b\"}"), echo_tool, NULL, NULL));
    OK(te_tools_add(tools, TE_STR("{\"name\": \"a\"}"), echo_tool, NULL, NULL));
    GIVES(TE_INVALID_TOOL, te_tools_add(tools, TE_STR("{\"name\": \"a\"}"), echo_tool, NULL, NULL));
    /* Taken only by an executor that has the built-in tools. */
    OK(te_tools_add(tools, TE_STR("{\"name\": \"bash\"}"), echo_tool, NULL, NULL));
    GIVES(TE_INVALID_TOOL, te_executor_new(TE_STR("{}"), tools, &executor));
    OK(te_executor_new(TE_STR("{\"tools\": {\"builtin\": false}}"), tools, &executor));
    te_executor_free(executor);
    te_tools_free(tools);
    te_tools_free(NULL);
}

static void calls(te_executor *executor, te_queue *queue) {
    static const struct {
        const char *json;
        te_status status;
    } CASES[] = {
        {"", TE_INVALID_JSON},
        {"[]", TE_INVALID_JSON},
        {"{}", TE_INVALID_JSON},
        {"{\"name\": null}", TE_INVALID_JSON},
        {"{\"name\": \"echo\", \"nonsense\": 1}", TE_INVALID_JSON},
        {"{\"name\": \"echo\"} x", TE_INVALID_JSON},
        {"{\"name\": \"echo\", \"timeout_s\": 0}", TE_INVALID_ARGUMENT},
        {"{\"name\": \"echo\", \"timeout_s\": 601}", TE_INVALID_ARGUMENT},
        {"{\"name\": \"echo\", \"timeout_s\": -1}", TE_INVALID_JSON},
        {"{\"name\": \"echo\", \"uniq_id\": 1}", TE_INVALID_JSON},
    };
    te_result *result;
    te_call *call;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        result = (te_result *)&result;
        call = (te_call *)&call;
        GIVES(CASES[i].status,
              te_execute(executor, TE_STR("t"), TE_STR(CASES[i].json), &result));
        GIVES(CASES[i].status, te_submit(queue, TE_STR("t"), TE_STR(CASES[i].json), 1, &call));
        CHECK(result == NULL && call == NULL && is_error());
    }
    GIVES(TE_NULL, te_execute(NULL, TE_STR("t"), ECHO_CALL, &result));
    GIVES(TE_NULL, te_execute(executor, TE_STR("t"), ECHO_CALL, NULL));
    GIVES(TE_NULL, te_execute(executor, NULL, 1, ECHO_CALL, &result));
    GIVES(TE_NULL, te_execute(executor, TE_STR("t"), NULL, 1, &result));
    GIVES(TE_INVALID_UTF8, te_execute(executor, BAD, 2, ECHO_CALL, &result));
    GIVES(TE_INVALID_UTF8, te_execute(executor, TE_STR("t"), BAD, 2, &result));
    GIVES(TE_NULL, te_submit(NULL, TE_STR("t"), ECHO_CALL, 1, NULL));
    GIVES(TE_INVALID_UTF8, te_submit(queue, BAD, 2, ECHO_CALL, 1, NULL));
    for (size_t i = 0; i < 3; i++) {
        GIVES(TE_INVALID_ARGUMENT, te_execute(executor, "t", WRONG[i], ECHO_CALL, &result));
        GIVES(TE_INVALID_ARGUMENT, te_execute(executor, TE_STR("t"), "{}", WRONG[i], &result));
        GIVES(TE_INVALID_ARGUMENT, te_submit(queue, "t", WRONG[i], ECHO_CALL, 1, NULL));
        GIVES(TE_INVALID_ARGUMENT, te_release(executor, "t", WRONG[i], 1));
        GIVES(TE_INVALID_ARGUMENT, te_cancel_trajectory(executor, "t", WRONG[i]));
    }
    /* What is wrong with a call is a result; the trajectory's id is a part of it. */
    OK(te_execute(executor, NULL, 0, ECHO_CALL, &result));
    CHECK(result->outcome == TE_OUTCOME_INVALID_CALL && result->error_len > 0);
    te_result_free(result);
    OK(te_execute(executor, TE_STR("t"), TE_STR("{\"name\": \"echo\", \"arguments\": []}"), &result));
    CHECK(result->outcome == TE_OUTCOME_INVALID_CALL);
    te_result_free(result);
    /* Another kind's handle is noticed. */
    GIVES(TE_INVALID_HANDLE, te_execute((te_executor *)queue, TE_STR("t"), ECHO_CALL, &result));
    GIVES(TE_INVALID_HANDLE, te_submit((te_queue *)executor, TE_STR("t"), ECHO_CALL, 1, NULL));
    GIVES(TE_INVALID_HANDLE, te_stats((te_executor *)((char *)executor + 1), NULL) == TE_NULL
                                 ? te_cancel_trajectory((te_executor *)((char *)executor + 1), "t", 1)
                                 : TE_OK);
    te_executor_free((te_executor *)queue);
    te_result_free((te_result *)queue);
    CHECK(strstr(te_last_error(), "te_result"));
    te_call_free(NULL);
}

static void queues(te_executor *executor, te_queue *queue) {
    te_queue *other;
    te_result *result, *results[4];
    size_t count = 7;
    int fd;
    GIVES(TE_NULL, te_queue_new(executor, 1, NULL));
    GIVES(TE_NULL, te_queue_new(NULL, 1, &other));
    GIVES(TE_INVALID_ARGUMENT, te_queue_new(executor, 0, &other));
    GIVES(TE_INVALID_ARGUMENT, te_queue_new(executor, (size_t)-1, &other));
    CHECK(other == NULL);
    GIVES(TE_NULL, te_queue_next(NULL, 0, &result));
    GIVES(TE_NULL, te_queue_next(queue, 0, NULL));
    GIVES(TE_TIMEOUT, te_queue_next(queue, 0, &result));
    CHECK(result == NULL);
    GIVES(TE_TIMEOUT, te_queue_next(queue, 0.01, &result));
    GIVES(TE_INVALID_ARGUMENT, te_queue_next(queue, -1, &result));
    GIVES(TE_INVALID_ARGUMENT, te_queue_next(queue, strtod("nan", NULL), &result));
    GIVES(TE_NULL, te_queue_next_many(queue, 4, 0, NULL, &count));
    GIVES(TE_NULL, te_queue_next_many(queue, 4, 0, results, NULL));
    GIVES(TE_INVALID_ARGUMENT, te_queue_next_many(queue, 0, 0, results, &count));
    GIVES(TE_INVALID_ARGUMENT, te_queue_next_many(queue, (size_t)-1, 0, results, &count));
    GIVES(TE_TIMEOUT, te_queue_next_many(queue, 4, 0, results, &count));
    CHECK(count == 0);
    GIVES(TE_NULL, te_queue_fd(queue, NULL));
    GIVES(TE_NULL, te_queue_fd(NULL, &fd));
    CHECK(fd == -1);
    GIVES(TE_NULL, te_queue_outstanding(queue, NULL));
    GIVES(TE_NULL, te_queue_outstanding(NULL, &count));
    te_queue_free(NULL);
}

static void rest(te_executor *executor) {
    te_buffer buffer = {NULL, 3};
    te_result *result = NULL;
    const char *text;
    size_t len;
    GIVES(TE_NULL, te_stats(executor, NULL));
    GIVES(TE_NULL, te_stats(NULL, &buffer));
    CHECK(buffer.data == NULL && buffer.len == 0);
    GIVES(TE_NULL, te_describe(executor, NULL));
    GIVES(TE_NULL, te_parse_calls(TE_STR("x"), NULL));
    GIVES(TE_INVALID_UTF8, te_parse_calls(BAD, 2, &buffer));
    GIVES(TE_NULL, te_result_json(NULL, &text, &len));
    CHECK(len == 0 && text != NULL);
    GIVES(TE_NULL, te_result_json(NULL, NULL, &len));
    GIVES(TE_NULL, te_result_xml(result, &text, NULL));
    te_result_free(NULL);
    te_buffer_free(NULL);
    GIVES(TE_NULL, te_result_read(TE_STR("{}"), NULL));
    GIVES(TE_INVALID_JSON, te_result_read(TE_STR("{\"outcome\": \"ok\"}"), &result));
    CHECK(result == NULL);
    GIVES(TE_INVALID_ARGUMENT,
          te_result_read(TE_STR("{\"trajectory_id\": \"t\", \"outcome\": \"ok\", \"output\": \"\", "
                                "\"error\": \"\", \"metadata\": {}, \"may_have_executed\": true, "
                                "\"exec_s\": -1}"),
                         &result));
    GIVES(TE_INVALID_JSON,
          te_result_read(TE_STR("{\"trajectory_id\": \"t\", \"outcome\": \"nonsense\"}"), &result));
    CHECK(strstr(te_last_error(), "nonsense"));
    GIVES(TE_NULL, te_release(NULL, TE_STR("t"), 1));
    GIVES(TE_NULL, te_executor_close(NULL, 1, NULL, NULL));
    GIVES(TE_INVALID_ARGUMENT, te_executor_close(executor, strtod("nan", NULL), NULL, NULL));
    GIVES(TE_INVALID_ARGUMENT, te_log_set(NULL, NULL, 99));
    GIVES(TE_NULL, te_tool_reply_ok(NULL, TE_STR("x")));
    GIVES(TE_NULL, te_call_cancel(NULL));
    te_tool_reply_free(NULL);
    te_executor_free(NULL);
    CHECK(strcmp(te_status_name(TE_CLOSED), "TE_CLOSED") == 0);
    CHECK(strcmp(te_status_name(-1), "TE_UNKNOWN") == 0);
    CHECK(strcmp(te_outcome_name(-1), "unknown") == 0);
    /* Artifacts, of an executor without a sandbox. */
    GIVES(TE_NO_SLOT, te_artifact_list(executor, TE_STR("t"), NULL, 0, &buffer));
    GIVES(TE_INVALID_JSON, te_artifact_list(executor, TE_STR("t"), TE_STR("{\"x\": 1}"), &buffer));
    GIVES(TE_INVALID_JSON, te_artifact_read(executor, TE_STR("t"), NULL, 0, &buffer, NULL));
    GIVES(TE_NULL, te_artifact_read(executor, TE_STR("t"), TE_STR("{\"path\": \"x\"}"), NULL, &buffer));
    GIVES(TE_NO_SLOT,
          te_artifact_read(executor, TE_STR("t"), TE_STR("{\"path\": \"x\"}"), &buffer, NULL));
    GIVES(TE_NO_SLOT, te_artifact_archive(executor, TE_STR("t"), NULL, 0, &buffer, NULL));
    GIVES(TE_NO_SLOT, te_artifact_copy(executor, TE_STR("t"), TE_STR("x"), 1, NULL));
    GIVES(TE_INVALID_ARGUMENT, te_artifact_copy(executor, TE_STR("t"), TE_STR("x"), -1, NULL));
    GIVES(TE_NO_SLOT, te_archive_copy(executor, TE_STR("t"), NULL, 0, 1, NULL));
}

static void after_close(te_executor *executor, te_queue *queue) {
    te_result *result;
    te_call *call;
    te_queue *another;
    te_buffer buffer;
    int fd;
    OK(te_submit(queue, TE_STR("last"), ECHO_CALL, 42, &call));
    OK(te_executor_close(executor, 10, NULL, NULL));
    GIVES(TE_CLOSED, te_execute(executor, TE_STR("t"), ECHO_CALL, &result));
    GIVES(TE_CLOSED, te_submit(queue, TE_STR("t"), ECHO_CALL, 1, NULL));
    GIVES(TE_CLOSED, te_release(executor, TE_STR("t"), 1));
    GIVES(TE_CLOSED, te_artifact_list(executor, TE_STR("t"), NULL, 0, &buffer));
    OK(te_cancel_trajectory(executor, TE_STR("t")));
    OK(te_call_cancel(call));
    OK(te_stats(executor, &buffer));
    te_buffer_free(&buffer);
    OK(te_describe(executor, &buffer));
    te_buffer_free(&buffer);
    OK(te_queue_fd(queue, &fd));
    OK(te_queue_new(executor, 1, &another));
    GIVES(TE_CLOSED, te_queue_next(another, 1000, &result));
    te_queue_free(another);
    /* What had its result before is still to be fetched. */
    OK(te_queue_next(queue, 0, &result));
    CHECK(result->tag == 42);
    te_executor_free(executor);
    GIVES(TE_CLOSED, te_submit(queue, TE_STR("t"), ECHO_CALL, 1, NULL));
    te_result *none;
    GIVES(TE_CLOSED, te_queue_next(queue, 1000, &none));
    te_queue_free(queue);
    te_call_free(call);
    CHECK(is_text(result->output, result->output_len, "{\"x\":1}"));
    te_result_free(result);
}

int main(void) {
    shelf s;
    te_executor *executor;
    te_queue *queue;
    watchdog();
    shelf_init(&s);
    configurations();
    tools();
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, 8, &queue));
    calls(executor, queue);
    queues(executor, queue);
    rest(executor);
    after_close(executor, queue);
    CHECK(s.freed == 1);
    shelf_done(&s);
    puts("errors: ok");
    return 0;
}
