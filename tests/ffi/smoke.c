/* One call through an in-process tool, and all that can be asked without a sandbox. Compiled as C99
 * and as C++17, against the shared and the static library. */
#include "check.h"

static int lines;

static void take_line(void *user, int32_t level, const char *message, size_t len) {
    (void)message;
    CHECK(user == &lines && level >= TE_LOG_ERROR && level <= TE_LOG_TRACE && len > 0);
    __atomic_add_fetch(&lines, 1, __ATOMIC_RELAXED);
}

int main(void) {
    shelf s;
    te_executor *executor;
    te_result *result;
    te_buffer buffer;
    const char *text;
    size_t len;
    uint64_t cancelled = 7;
    int32_t all_ended = 7;

    watchdog();
    shelf_init(&s);
    CHECK(strcmp(te_version(), TE_VERSION) == 0 && te_abi_version() == TE_ABI_VERSION);
    CHECK(strcmp(te_last_error(), "") == 0);
    OK(te_log_set(take_line, &lines, TE_LOG_TRACE));
    executor = with_tools(&s, "{}");

    OK(te_execute(executor, TE_STR("t\xc3\xa9"),
                  TE_STR("{\"name\": \"echo\", \"arguments\": {\"x\": \"\\u00e9\"}, \"uniq_id\": \"u\"}"),
                  &result));
    CHECK(result->outcome == TE_OUTCOME_OK && result->success == 1 && result->tag == 0);
    CHECK(result->may_have_executed == 1 && result->model_attributable == 1);
    CHECK(is_text(result->output, result->output_len, "{\"x\":\"\xc3\xa9\"}"));
    CHECK(is_text(result->error, result->error_len, ""));
    CHECK(is_text(result->uniq_id, result->uniq_id_len, "u"));
    CHECK(is_text(result->trajectory, result->trajectory_len, "t\xc3\xa9"));
    OK(te_result_metadata(result, &text, &len));
    CHECK(is_text(text, len, "{}"));
    OK(te_result_json(result, &text, &len));
    CHECK(has_text(text, len, "\"outcome\":\"ok\""));
    /* From JSON it is the same again. */
    te_result *read;
    const char *again;
    size_t again_len;
    OK(te_result_read(text, len, &read));
    CHECK(read->outcome == TE_OUTCOME_OK && read->success && read->model_attributable);
    CHECK(read->exec_s == result->exec_s && read->tag == result->tag);
    OK(te_result_json(read, &again, &again_len));
    CHECK(len == again_len && memcmp(text, again, len) == 0);
    OK(te_result_message(read, TE_STR("openai"), &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"tool_call_id\":\"u\""));
    te_buffer_free(&buffer);
    te_result_free(read);
    OK(te_result_xml(result, &text, &len));
    CHECK(has_text(text, len, "<tool_response>"));
    te_result_free(result);

    OK(te_execute(executor, TE_STR("t"), TE_STR("{\"name\": \"nonsense\"}"), &result));
    CHECK(result->outcome == TE_OUTCOME_UNKNOWN_TOOL && result->may_have_executed == 0);
    CHECK(strcmp(te_outcome_name(result->outcome), "unknown_tool") == 0);
    te_result_free(result);
    /* No sandbox was asked for. */
    OK(te_execute(executor, TE_STR("t"),
                  TE_STR("{\"name\": \"bash\", \"arguments\": {\"command\": \"true\"}}"), &result));
    CHECK(result->outcome == TE_OUTCOME_NEVER_RAN && result->model_attributable == 0);
    OK(te_result_json(result, &text, &len));
    CHECK(has_text(text, len, "\"model_attributable\":false"));
    te_result_free(result);

    OK(te_describe(executor, &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"backend\":null"));
    te_buffer_free(&buffer);
    CHECK(buffer.data == NULL && buffer.len == 0);
    te_buffer_free(&buffer);
    OK(te_stats(executor, &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"total_requests\":3"));
    te_buffer_free(&buffer);
    OK(te_parse_calls(TE_STR("x <tool_call>{\"name\": \"echo\", \"arguments\": {}}</tool_call> y"),
                      &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"name\":\"echo\""));
    te_buffer_free(&buffer);
    OK(te_parse_calls(NULL, 0, &buffer));
    CHECK(is_text(buffer.data, buffer.len, "[]"));
    te_buffer_free(&buffer);
    /* Every format; what cannot be read is a call too, and is answered. */
    OK(te_parse_text(executor, TE_STR("<tool_call>{nonsense}</tool_call>[TOOL_CALLS]echo[ARGS]{}"),
                     TE_STR("auto"), &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"unreadable\":"));
    CHECK(has_text(buffer.data, buffer.len, "\"form\":\"mistral\""));
    te_buffer_free(&buffer);
    OK(te_execute(executor, TE_STR("t"),
                  TE_STR("{\"name\": \"\", \"origin\": {\"form\": \"hermes\","
                         " \"unreadable\": \"it is nonsense\"}}"), &result));
    CHECK(result->outcome == TE_OUTCOME_INVALID_CALL && result->model_attributable == 1);
    te_result_free(result);
    OK(te_parse_message(executor,
                        TE_STR("{\"role\": \"assistant\", \"content\": [{\"type\": \"tool_use\","
                               " \"id\": \"toolu_1\", \"name\": \"echo\", \"input\": {}}]}"),
                        NULL, 0, &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"uniq_id\":\"toolu_1\""));
    te_buffer_free(&buffer);
    GIVES(TE_INVALID_ARGUMENT, te_parse_text(executor, TE_STR("x"), TE_STR("yaml"), &buffer));
    GIVES(TE_INVALID_JSON, te_parse_message(executor, TE_STR("[]"), NULL, 0, &buffer));
    GIVES(TE_NULL, te_parse_text(NULL, TE_STR("x"), NULL, 0, &buffer));
    /* A call of OpenAI's as it is, and its result in the same form. */
    OK(te_execute(executor, TE_STR("t"),
                  TE_STR("{\"id\": \"call_1\", \"type\": \"function\", \"function\":"
                         " {\"name\": \"echo\", \"arguments\": \"{\\\"x\\\": 1}\"}}"), &result));
    CHECK(result->outcome == TE_OUTCOME_OK && is_text(result->uniq_id, result->uniq_id_len, "call_1"));
    OK(te_result_message(result, TE_STR("openai"), &buffer));
    CHECK(has_text(buffer.data, buffer.len, "\"tool_call_id\":\"call_1\""));
    te_buffer_free(&buffer);
    GIVES(TE_INVALID_ARGUMENT, te_result_message(result, TE_STR("yaml"), &buffer));
    CHECK(buffer.data == NULL && buffer.len == 0);
    te_result_free(result);
    OK(te_release(executor, TE_STR("t"), 1));
    OK(te_submit_release(executor, TE_STR("t"), 0));
    OK(te_cancel_trajectory(executor, TE_STR("t")));

    OK(te_executor_close(executor, 10, &cancelled, &all_ended));
    CHECK(cancelled == 0 && all_ended == 1);
    OK(te_executor_close(executor, -1, NULL, NULL));
    GIVES(TE_CLOSED, te_submit_release(executor, TE_STR("t"), 0));
    te_executor_free(executor);
    CHECK(s.freed == 1);
    OK(te_log_set(NULL, NULL, TE_LOG_OFF));
    shelf_done(&s);
    puts("smoke: ok");
    return 0;
}
