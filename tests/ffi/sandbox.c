/* Real commands in the embedded sandbox, and hosts that make it hard; argv says how. */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

static const char *how;

static te_executor *start(void) {
    te_executor *executor;
    OK(te_executor_new(TE_STR("{\"local\": {\"slots\": 4}, \"policy\": {\"allow_network\": false}}"),
                       NULL, &executor));
    return executor;
}

static void run(te_executor *executor, const char *trajectory, const char *command,
                te_outcome outcome, const char *output) {
    te_result *result;
    char call[512];
    snprintf(call, sizeof call, "{\"name\": \"bash\", \"arguments\": {\"command\": \"%s\"}}", command);
    OK(te_execute(executor, TE_STR(trajectory), TE_STR(call), &result));
    if (result->outcome != outcome || !is_text(result->output, result->output_len, output)) {
        fprintf(stderr, "%s: %s: %.*s (%.*s)\n", command, te_outcome_name(result->outcome),
                (int)result->output_len, result->output, (int)result->error_len, result->error);
        abort();
    }
    te_result_free(result);
}

static void specs(te_executor *executor) {
    int32_t outcome = 7;
    OK(te_begin(executor, TE_STR("spec"),
                TE_STR("{\"env\": {\"A\": \"b\"}, \"workdir\": \"/app\","
                       " \"limits\": {\"open_files\": 64}}"), &outcome));
    CHECK(outcome == TE_OUTCOME_OK);
    run(executor, "spec", "echo $A $PWD $(ulimit -n)", TE_OUTCOME_OK, "b /app 64");
    CHECK(te_begin(executor, TE_STR("spec"), TE_STR("{}"), NULL) == TE_ALREADY_BEGUN);
    OK(te_release(executor, TE_STR("spec"), 1));
    CHECK(te_begin(executor, TE_STR("spec"), TE_STR("{\"env\": {\"PATH\": \"/x\"}}"), &outcome) ==
          TE_NOT_BEGUN);
    CHECK(outcome == TE_OUTCOME_SPEC_UNSUPPORTED);
    CHECK(strstr(te_last_error(), "--path-prepend") != NULL);
    run(executor, "spec", "true", TE_OUTCOME_SPEC_UNSUPPORTED, "");
    OK(te_release(executor, TE_STR("spec"), 1));
    CHECK(te_submit_begin(executor, TE_STR("spec"), TE_STR("{\"imgae\": 1}")) == TE_INVALID_SPEC);
    CHECK(strstr(te_last_error(), "unknown field `imgae`") != NULL);
    CHECK(te_submit_begin(executor, TE_STR("spec"), TE_STR("[]")) == TE_INVALID_SPEC);
    CHECK(te_submit_begin(executor, TE_STR("spec"), TE_STR("{")) == TE_INVALID_JSON);
    CHECK(te_submit_begin(executor, NULL, 1, TE_STR("{}")) == TE_NULL);
    OK(te_submit_begin(executor, TE_STR("spec"), TE_STR("{\"max_wall_s\": 0.3}")));
    run(executor, "spec", "echo begun; sleep 1000", TE_OUTCOME_TRAJECTORY_EXPIRED, "begun");
    OK(te_release(executor, TE_STR("spec"), 1));
}

/* What is put, or copied, and where it is. */
struct text {
    const char *data;
    size_t len, at;
};

static int64_t give(void *user, char *data, size_t len) {
    struct text *text = user;
    size_t left = text->len - text->at;
    /* In pieces, as a file or a socket would. */
    if (len > 3) len = 3;
    if (len > left) len = left;
    memcpy(data, text->data + text->at, len);
    text->at += len;
    return (int64_t)len;
}

static int64_t give_nothing(void *user, char *data, size_t len) {
    (void)user, (void)data, (void)len;
    return -1;
}

static int64_t give_too_much(void *user, char *data, size_t len) {
    (void)user, (void)data;
    return (int64_t)len + 1;
}

static int compare(void *user, const char *data, size_t len) {
    struct text *text = user;
    CHECK(len <= text->len - text->at && memcmp(text->data + text->at, data, len) == 0);
    text->at += len;
    return 0;
}

static int refuse(void *user, const char *data, size_t len) {
    (void)user, (void)data, (void)len;
    return 1;
}

static void puts_files(te_executor *executor) {
    struct text hello = {"hello, machine", 14, 0};
    te_buffer info;
    uint64_t bytes;
    int fd;
    /* The trajectory begins with it. */
    OK(te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"/srv/d/f\", \"mode\": 488}"), give,
                    &hello, &info));
    CHECK(has_text(info.data, info.len, "\"path\":\"/srv/d/f\""));
    CHECK(has_text(info.data, info.len, "\"bytes\":14"));
    te_buffer_free(&info);
    run(executor, "p", "cat /srv/d/f; stat -c ' %a' /srv/d/f", TE_OUTCOME_OK, "hello, machine 750");
    hello.at = 0;
    OK(te_artifact_copy_to(executor, TE_STR("p"), TE_STR("/srv/d/f"), compare, &hello, &bytes));
    CHECK(bytes == 14 && hello.at == 14);
    GIVES(TE_IO, te_artifact_copy_to(executor, TE_STR("p"), TE_STR("/srv/d/f"), refuse, NULL, NULL));
    GIVES(TE_IO, te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"n\"}"), give_nothing, NULL,
                              NULL));
    GIVES(TE_IO, te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"n\"}"), give_too_much,
                              NULL, NULL));
    hello.at = 0;
    GIVES(TE_BAD_ARCHIVE,
          te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \".\", \"kind\": \"tar\"}"), give,
                       &hello, NULL));
    GIVES(TE_INVALID_JSON,
          te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"n\", \"mood\": 1}"), give, &hello,
                       NULL));
    GIVES(TE_INVALID_ARGUMENT,
          te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"n\", \"mode\": 4095}"), give,
                       &hello, NULL));
    GIVES(TE_NULL, te_files_put(executor, TE_STR("p"), TE_STR("{\"path\": \"n\"}"), NULL, NULL, NULL));
    fd = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    OK(te_files_put_fd(executor, TE_STR("p"), TE_STR("{\"path\": \"name\"}"), fd, NULL));
    CHECK(close(fd) == 0);
    OK(te_tree_put(executor, TE_STR("p"), TE_STR("/etc/ssl"), TE_STR("tree"), &info));
    CHECK(has_text(info.data, info.len, "\"path\":\"/workspace/tree\""));
    te_buffer_free(&info);
    run(executor, "p", "test -n \\\"$(ls tree)\\\" && ls", TE_OUTCOME_OK, "name\ntree");
    OK(te_release(executor, TE_STR("p"), 1));
}

static void artifacts(te_executor *executor) {
    te_buffer content, info;
    uint64_t bytes;
    int fds[2];
    char copy[16];
    run(executor, "a", "mkdir d; printf hello > d/f; seq 100000 > big", TE_OUTCOME_OK, "");
    OK(te_artifact_read(executor, TE_STR("a"), TE_STR("{\"path\": \"d/f\", \"sha256\": true}"),
                        &content, &info));
    CHECK(is_text(content.data, content.len, "hello"));
    CHECK(has_text(info.data, info.len, "\"sha256\":\"2cf24dba5fb0a30e"));
    te_buffer_free(&content), te_buffer_free(&info);
    GIVES(TE_NOT_FOUND,
          te_artifact_read(executor, TE_STR("a"), TE_STR("{\"path\": \"x\"}"), &content, &info));
    CHECK(content.data == NULL && info.data == NULL);
    GIVES(TE_REFUSED, te_artifact_read(executor, TE_STR("a"),
                                       TE_STR("{\"path\": \"../../proc/self/environ\"}"), &content,
                                       NULL));
    GIVES(TE_NOT_A_FILE,
          te_artifact_read(executor, TE_STR("a"), TE_STR("{\"path\": \"d\"}"), &content, NULL));
    OK(te_artifact_list(executor, TE_STR("a"), TE_STR("{\"recursive\": true}"), &content));
    CHECK(has_text(content.data, content.len, "\"path\":\"d/f\""));
    te_buffer_free(&content);
    OK(te_artifact_archive(executor, TE_STR("a"), NULL, 0, &content, &info));
    CHECK(content.len > 100 && (unsigned char)content.data[0] == 0x1f);
    CHECK(has_text(info.data, info.len, "\"truncated\":false"));
    te_buffer_free(&content), te_buffer_free(&info);
    GIVES(TE_TOO_LARGE, te_artifact_archive(executor, TE_STR("a"), TE_STR("{\"max_bytes\": 10}"),
                                            &content, NULL));
    CHECK(pipe(fds) == 0);
    OK(te_artifact_copy(executor, TE_STR("a"), TE_STR("d/f"), fds[1], &bytes));
    CHECK(bytes == 5 && read(fds[0], copy, sizeof copy) == 5 && memcmp(copy, "hello", 5) == 0);
    /* Nobody reads any more: an error, and no SIGPIPE, which would end this program. */
    close(fds[0]);
    GIVES(TE_IO, te_artifact_copy(executor, TE_STR("a"), TE_STR("d/f"), fds[1], &bytes));
    GIVES(TE_IO, te_archive_copy(executor, TE_STR("a"), NULL, 0, fds[1], &info));
    sigset_t pending;
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGPIPE) == 0);
    close(fds[1]);
    int null = open("/dev/null", O_WRONLY);
    OK(te_archive_copy(executor, TE_STR("a"), NULL, 0, null, &info));
    te_buffer_free(&info);
    close(null);
}

static void work(te_executor *executor) {
    te_queue *queue;
    te_result *result;
    te_call *call;
    const char *text;
    size_t len;
    char name[16];
    run(executor, "t", "echo hello > f; cat f", TE_OUTCOME_OK, "hello");
    run(executor, "t", "cat f; exit 3", TE_OUTCOME_NON_ZERO_EXIT, "hello");
    run(executor, "t", "kill -9 $$", TE_OUTCOME_NON_ZERO_EXIT, "");
    OK(te_execute(executor, TE_STR("t"),
                  TE_STR("{\"name\": \"bash\", \"arguments\": {\"command\": \"sleep 500 & "
                         "until grep -qx sleep /proc/$!/comm; do :; done\"}}"), &result));
    OK(te_result_metadata(result, &text, &len));
    CHECK(has_text(text, len, "\"ended_processes\":{\"count\":1,\"names\":[\"sleep\"]}"));
    te_result_free(result);
    specs(executor);
    artifacts(executor);
    puts_files(executor);
    OK(te_queue_new(executor, 64, &queue));
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof name, "q%d", i % 8);
        OK(te_submit(queue, TE_STR(name),
                     TE_STR("{\"name\": \"bash\", \"arguments\": {\"command\": \"echo x\"}}"), 7, NULL));
        OK(te_submit_release(executor, TE_STR(name), 1));
        if (i != 3) continue;
        OK(te_release(executor, TE_STR("t"), 1));
        OK(te_release(executor, TE_STR("a"), 1));
    }
    for (int i = 0; i < 16; i++) {
        OK(te_queue_next(queue, 120, &result));
        CHECK(result->tag == 7 && result->outcome == TE_OUTCOME_OK);
        te_result_free(result);
    }
    /* A command that would run for long is ended. */
    OK(te_submit(queue, TE_STR("c"),
                 TE_STR("{\"name\": \"bash\", \"arguments\": {\"command\": \"sleep 500\"}, "
                        "\"timeout_s\": 600}"), 1, &call));
    OK(te_call_cancel(call));
    OK(te_queue_next(queue, 120, &result));
    CHECK(result->outcome == TE_OUTCOME_CANCELLED);
    te_result_free(result);
    te_call_free(call);
    te_queue_free(queue);
}

static void *whole(void *data) {
    te_executor *executor = start();
    (void)data;
    work(executor);
    te_executor_free(executor);
    return NULL;
}

static volatile int stop;

/* A host that takes every child's end for its own. */
static void *reaps(void *data) {
    (void)data;
    while (!stop)
        if (waitpid(-1, NULL, WNOHANG) <= 0) sched_yield();
    return NULL;
}

/* What the library must leave alone. */
static void dispositions(struct sigaction *all) {
    for (int signal = 1; signal < 32; signal++)
        if (sigaction(signal, NULL, &all[signal]) != 0) memset(&all[signal], 0, sizeof *all);
}

int main(int argc, char **argv) {
    struct sigaction before[32], after[32];
    pthread_t reaper;
    int reaping = 0;
    watchdog();
    CHECK(argc == 2);
    how = argv[1];
    if (strcmp(how, "ignores") == 0) {
        signal(SIGCHLD, SIG_IGN);
        signal(SIGPIPE, SIG_IGN);
    } else if (strcmp(how, "reaps") == 0) {
        reaping = 1;
        CHECK(pthread_create(&reaper, NULL, reaps, NULL) == 0);
    } else if (strcmp(how, "closed") == 0) {
        close(0), close(1);
        close(2);
    }
    dispositions(before);
    if (strcmp(how, "small") == 0) {
        pthread_t thread;
        pthread_attr_t attributes;
        CHECK(pthread_attr_init(&attributes) == 0);
        CHECK(pthread_attr_setstacksize(&attributes, 128 * 1024) == 0);
        CHECK(pthread_create(&thread, &attributes, whole, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        pthread_attr_destroy(&attributes);
    } else if (strcmp(how, "leaves") == 0) {
        te_executor *executor = start();
        te_queue *queue;
        OK(te_queue_new(executor, 1, &queue));
        OK(te_submit(queue, TE_STR("t"),
                     TE_STR("{\"name\": \"bash\", \"arguments\": {\"command\": \"sleep 500\"}, "
                            "\"timeout_s\": 600}"), 1, NULL));
        while (1) { /* until it runs */
            te_buffer stats;
            OK(te_stats(executor, &stats));
            int running = has_text(stats.data, stats.len, "\"running\":1");
            te_buffer_free(&stats);
            if (running) break;
            sched_yield();
        }
        _exit(0);
    } else {
        whole(NULL);
    }
    dispositions(after);
    for (int i = 1; i < 32; i++) CHECK(before[i].sa_handler == after[i].sa_handler);
    if (reaping) {
        stop = 1;
        CHECK(pthread_join(reaper, NULL) == 0);
    }
    if (strcmp(how, "closed") != 0) puts("sandbox: ok");
    return 0;
}
