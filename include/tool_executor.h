/*
 * The C ABI of tool-executor, which executes the tool calls of many concurrent LLM agents.
 *
 * Made from src/ffi by tests/header.rs; not to be edited. Licence: MIT or Apache-2.0.
 *
 *     te_executor *executor;
 *     te_result *result;
 *     if (te_executor_new(TE_STR("{\"local\": {\"slots\": 8}}"), NULL, &executor) != TE_OK)
 *         return fprintf(stderr, "%s\n", te_last_error());
 *     te_execute(executor, TE_STR("agent-1"), TE_STR("{\"name\": \"bash\", \"arguments\": "
 *         "{\"command\": \"echo hello\"}}"), &result);
 *     printf("%.*s\n", (int)result->output_len, result->output);
 *     te_result_free(result);
 *     te_executor_free(executor);
 *
 * What holds for every function:
 *
 * Text       comes and goes as a pointer and a length in bytes, is UTF-8, and needs no NUL. NULL
 *            with a length of 0 is empty. What is passed in stays the caller's and is not looked at
 *            after the function has returned; nobody may change it meanwhile. TE_STR("...") is both
 *            arguments.
 * Errors     All functions that can fail return a te_status; te_last_error() has the words, for
 *            this thread. NULL, lengths and numbers that make no sense, text that is not UTF-8 or
 *            not JSON, and what comes after a close are statuses. No exception and no panic gets
 *            out.
 * Results    come through pointers: whatever the status, the place is set, to NULL, 0 or an empty
 *            buffer if there is nothing. Each has its own function that frees it, for which NULL is
 *            nothing to do. Nothing else may free it.
 * Handles    (te_executor, te_queue, te_call, te_tools, te_tool_reply) may be used by any number of
 *            threads at the same time, and freed in any order. Freeing one is harmless to a thread
 *            that is inside a function with it; to begin a function with a handle that is freed, or
 *            being freed, is the caller's error, like freeing twice: it is undefined, though often
 *            noticed (TE_INVALID_HANDLE). After te_executor_close() handles stay valid until they
 *            are freed.
 * Waiting    Every function that waits has an end. Functions that are not said to block do not.
 * Threads    The library's own have names that begin with "tool-" and all signals blocked. They
 *            call code of the host's only if it was asked for: tools, the log, and what frees a
 *            tool's data. What reads and writes files (te_read_fn, te_write_fn) is called on the
 *            thread that asks for it. A thread that calls in needs 128 KiB of stack, and what the
 *            host's own log function needs.
 * Signals    No handlers are installed and no dispositions are changed. SIGCHLD and SIGPIPE may be
 *            ignored, and children reaped by waitpid(-1).
 * fork       The child has none of the threads: functions with a handle from before the fork give
 *            TE_FORKED at once, and so does te_executor_new(). Freeing is allowed and leaves what
 *            is the parent's alone; results and buffers work. To use the library in a child, fork
 *            before the parent makes its first executor, or exec. (A child that neither execs nor
 *            ends keeps files of the parent's open.)
 * The end    A host may exit without closing: running commands die with it, and the next executor
 *            with the same data directory removes what is left. The shared library is never
 *            unloaded: dlclose() is allowed and does nothing. Before the host unloads code that has
 *            a log function, it ends that by te_log_set(NULL, NULL, 0).
 */


#ifndef TOOL_EXECUTOR_H
#define TOOL_EXECUTOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/** The version of this header; that of the library is te_version(). */
#define TE_VERSION "0.1.0"
#define TE_VERSION_MAJOR 0
#define TE_VERSION_MINOR 1
#define TE_VERSION_PATCH 0

/**
 * The ABI that this header describes; see te_abi_version().
 */
#define TE_ABI_VERSION 1

/**
 * What a function says. The numbers never change; new ones may be added. te_last_error() has the
 * details, in words.
 */
enum te_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  TE_OK = 0,
  /**
   * The time was up before anything came. Not an error.
   */
  TE_TIMEOUT = 1,
  /**
   * The executor is closed, or closing; of a completion queue: and nothing more will come.
   */
  TE_CLOSED = 2,
  /**
   * As many calls as `queue_capacity` wait to run: fetch completions, and submit again.
   */
  TE_QUEUE_FULL = 3,
  /**
   * The completion queue has as many calls as its capacity: fetch completions, and submit again.
   */
  TE_COMPLETIONS_FULL = 4,
  /**
   * A pointer is NULL that must not be.
   */
  TE_NULL = 10,
  /**
   * A number makes no sense: a length, a timeout, a level.
   */
  TE_INVALID_ARGUMENT = 11,
  /**
   * Text is not UTF-8.
   */
  TE_INVALID_UTF8 = 12,
  /**
   * Text is not JSON, or not the JSON that is asked for.
   */
  TE_INVALID_JSON = 13,
  /**
   * The configuration makes no sense: an unknown key, a value out of its range.
   */
  TE_INVALID_CONFIG = 14,
  /**
   * A pointer is not such a handle: it is another kind's, or was freed. A best effort: that a
   * pointer is wild cannot be known.
   */
  TE_INVALID_HANDLE = 15,
  /**
   * A tool cannot be registered: its name is taken, or is no name.
   */
  TE_INVALID_TOOL = 16,
  /**
   * The sandbox, or a thread, could not be started.
   */
  TE_START_FAILED = 20,
  /**
   * The ToolServer cannot be used.
   */
  TE_TOOL_SERVER_FAILED = 21,
  /**
   * A workspace could not be emptied. Its slot is not given out before that succeeds.
   */
  TE_RESET_FAILED = 22,
  /**
   * The trajectory has no slot: it has run nothing in a sandbox, or was released.
   */
  TE_NO_SLOT = 30,
  /**
   * The path leads out of the workspace.
   */
  TE_OUTSIDE_WORKSPACE = 31,
  /**
   * Nothing is at this path.
   */
  TE_NOT_FOUND = 32,
  /**
   * What is at this path is no regular file.
   */
  TE_NOT_A_FILE = 33,
  /**
   * What is at this path is neither a file nor a directory.
   */
  TE_UNSUPPORTED_TYPE = 34,
  /**
   * The archive is larger than was allowed.
   */
  TE_TOO_LARGE = 35,
  /**
   * The sandbox that held the workspace is gone, or does not answer.
   */
  TE_SANDBOX_LOST = 36,
  /**
   * This system, or this sandbox, does not have this.
   */
  TE_UNSUPPORTED = 37,
  /**
   * Reading or writing failed.
   */
  TE_IO = 38,
  /**
   * There is no room for it in the slot.
   */
  TE_DISK_FULL = 39,
  /**
   * The tool's call was answered before.
   */
  TE_ALREADY_ANSWERED = 40,
  /**
   * The process has a logger of its own: the host is a Rust program.
   */
  TE_LOGGER_TAKEN = 41,
  /**
   * What is at the path is the kernel's, and no file.
   */
  TE_REFUSED = 45,
  /**
   * The tar stream is none, or has what cannot be unpacked.
   */
  TE_BAD_ARCHIVE = 46,
  /**
   * The trajectory keeps processes that would end with a snapshot.
   */
  TE_KEEPS_PROCESSES = 47,
  /**
   * As many snapshots are kept as may be, or were made of the trajectory.
   */
  TE_TOO_MANY_SNAPSHOTS = 48,
  /**
   * The trajectory has begun, has failed to begin, or has made a call: release it first.
   */
  TE_ALREADY_BEGUN = 60,
  /**
   * The trajectory did not begin as its spec asks; te_begin() gives the outcome.
   */
  TE_NOT_BEGUN = 61,
  /**
   * The spec makes no sense: an unknown key, a value of another type or out of its range.
   */
  TE_INVALID_SPEC = 62,
  /**
   * This process is a fork of the one that made the handle. Its threads are not here: nothing
   * works but freeing.
   */
  TE_FORKED = 50,
  /**
   * A bug in the library was caught. The handle may be used further.
   */
  TE_PANIC = 51,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum te_status te_status;
#else
typedef int32_t te_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How a call ended. Numbers never change; new ones may be added.
 */
enum te_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The tool did what it was asked to do.
   */
  TE_OUTCOME_OK = 0,
  /**
   * The command ran to its end and its exit code is not 0, or a signal ended it.
   */
  TE_OUTCOME_NON_ZERO_EXIT = 1,
  /**
   * The tool ran and refused or failed: file not found, access denied, ....
   */
  TE_OUTCOME_TOOL_ERROR = 2,
  /**
   * The call's time was up. What it had printed is in the output; all its processes are dead.
   */
  TE_OUTCOME_TIMEOUT = 3,
  /**
   * The slot's memory limit ended it.
   */
  TE_OUTCOME_OUT_OF_MEMORY = 4,
  /**
   * It was cancelled.
   */
  TE_OUTCOME_CANCELLED = 5,
  /**
   * The call itself is wrong: its arguments do not fit. It was never queued.
   */
  TE_OUTCOME_INVALID_CALL = 6,
  /**
   * No tool has this name. It was never queued.
   */
  TE_OUTCOME_UNKNOWN_TOOL = 7,
  /**
   * The policy demands an isolation that this sandbox cannot give. Nothing ran.
   */
  TE_OUTCOME_ISOLATION_UNAVAILABLE = 8,
  /**
   * The sandbox that held the trajectory's workspace is gone, or did not answer in time.
   */
  TE_OUTCOME_SANDBOX_LOST = 9,
  /**
   * The sandbox failed, or could not start the command.
   */
  TE_OUTCOME_BACKEND_FAILED = 10,
  /**
   * An external tool could not be run: no ToolServer, no usable answer; or a tool of the host's
   * freed its reply without an answer.
   */
  TE_OUTCOME_EXTERNAL_FAILED = 11,
  /**
   * The call was accepted and never started: no slot in time, or the executor was closed.
   */
  TE_OUTCOME_NEVER_RAN = 12,
  /**
   * The slot's limit of workspace bytes ended it.
   */
  TE_OUTCOME_DISK_FULL = 13,
  /**
   * The image that the trajectory asked for cannot be had. Nothing ran.
   */
  TE_OUTCOME_IMAGE_UNAVAILABLE = 14,
  /**
   * Commands cannot be run in the image that the trajectory asked for. Nothing ran.
   */
  TE_OUTCOME_IMAGE_UNUSABLE = 15,
  /**
   * The trajectory asked for what this sandbox cannot give, or its operator does not allow.
   * Nothing ran.
   */
  TE_OUTCOME_SPEC_UNSUPPORTED = 16,
  /**
   * The time that the trajectory may hold its slot was up: max_wall_s or max_idle_s of its spec.
   */
  TE_OUTCOME_TRAJECTORY_EXPIRED = 17,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum te_outcome te_outcome;
#else
typedef int32_t te_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much is logged.
 */
enum te_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Nothing.
   */
  TE_LOG_OFF = 0,
  /**
   * What went wrong.
   */
  TE_LOG_ERROR = 1,
  /**
   * And what one should know: that commands are not isolated, for one.
   */
  TE_LOG_WARN = 2,
  /**
   * And what one may want to know.
   */
  TE_LOG_INFO = 3,
  /**
   * And what helps to find a bug.
   */
  TE_LOG_DEBUG = 4,
  /**
   * Everything.
   */
  TE_LOG_TRACE = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum te_log_level te_log_level;
#else
typedef int32_t te_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A submitted call, to cancel it. Made by te_submit() for those who ask for it, freed by
 * te_call_free(). Any number of threads may use it at the same time.
 */
typedef struct te_call te_call;

/**
 * An executor. Made by te_executor_new(), freed by te_executor_free(). Any number of threads may
 * use it at the same time.
 */
typedef struct te_executor te_executor;

/**
 * Collects the results of the calls that were submitted to it. Made by te_queue_new(), freed by
 * te_queue_free(). Any number of threads may use it at the same time; each completion goes to one
 * of them.
 */
typedef struct te_queue te_queue;

/**
 * The answer that a call of a tool waits for. Given to a te_tool_fn, freed by
 * te_tool_reply_free(). Any number of threads may use it at the same time.
 */
typedef struct te_tool_reply te_tool_reply;

/**
 * Tools of the host's own, for te_executor_new(). Made by te_tools_new(), freed by
 * te_tools_free(). Any number of threads may use them at the same time.
 */
typedef struct te_tools te_tools;

/**
 * Bytes that belong to the caller: the functions that give some fill a buffer of the caller's,
 * and te_buffer_free() frees what is in it. What it held before is not looked at. After an error
 * it is empty.
 */
typedef struct te_buffer {
  /**
   * The bytes: UTF-8 where they are JSON. No NUL at the end. NULL if there are none.
   */
  char *data;
  /**
   * How many.
   */
  size_t len;
} te_buffer;

/**
 * Takes one line of the log. `message` is UTF-8, without a NUL or a line's end at its end, and
 * valid until the function returns. Called on any thread, by several at the same time; must not
 * block for long, throw an exception or longjmp. What the library logs while it runs, on the same
 * thread, is left out.
 */
typedef void (*te_log_fn)(void *user, int32_t level, const char *message, size_t message_len);

/**
 * A call of a tool of the host's. The library's; valid until the te_tool_fn returns. Later
 * versions may add fields at the end. The texts are UTF-8 without a NUL at the end, and never
 * NULL.
 */
typedef struct te_tool_call {
  /**
   * The tool's name.
   */
  const char *name;
  /**
   * The length of `name`.
   */
  size_t name_len;
  /**
   * Whose call it is.
   */
  const char *trajectory;
  /**
   * The length of `trajectory`.
   */
  size_t trajectory_len;
  /**
   * The call's "uniq_id".
   */
  const char *uniq_id;
  /**
   * The length of `uniq_id`.
   */
  size_t uniq_id_len;
  /**
   * The arguments: a JSON object that fits the tool's schema.
   */
  const char *arguments;
  /**
   * The length of `arguments`.
   */
  size_t arguments_len;
  /**
   * Seconds until the call's time is up.
   */
  double remaining_s;
} te_tool_call;

/**
 * A tool of the host's. `reply` is the function's from now on: it, or what it passes it to,
 * answers by te_tool_reply_ok(), te_tool_reply_error() or te_tool_reply_fail() once, and frees it
 * by te_tool_reply_free() – before it returns, or later on any thread. It must not block for what
 * it can wait for elsewhere: there are "handler_threads" threads for all tools.
 *
 * Called on threads of the library ("tool-fn-N", with a stack of 2 MiB and all signals blocked),
 * for several trajectories at the same time. It may submit calls, but must not wait for a call of
 * its own trajectory. It must neither throw an exception nor longjmp.
 *
 * It returns 0. Any other number ends the call as TE_OUTCOME_EXTERNAL_FAILED, if it has no
 * answer; the reply has to be freed all the same.
 */
typedef int32_t (*te_tool_fn)(void *user,
                              const struct te_tool_call *call,
                              struct te_tool_reply *reply);

/**
 * Frees what a host has given the library along with a function.
 */
typedef void (*te_free_fn)(void *user);

/**
 * What a call gave. Allocated by the library, read by the caller, freed by te_result_free(); what
 * its pointers lead to lives as long as it does. Never NULL, UTF-8, and without a NUL at the end.
 *
 * Later versions may add fields at the end: use it by the pointers that the library gives, and do
 * not copy it or make one. Any number of threads may read it at the same time. It does not need
 * the executor, and works in a forked process.
 */
typedef struct te_result {
  /**
   * The library's own.
   */
  uint64_t reserved;
  /**
   * What te_submit() was given; 0 from te_execute().
   */
  uint64_t tag;
  /**
   * How the call ended, for programs.
   */
  te_outcome outcome;
  /**
   * 1 if the tool did what it was asked to do, which is TE_OUTCOME_OK; else 0.
   */
  uint8_t success;
  /**
   * 1 if any part of the call may have had an effect; 0 only where it is certain that nothing
   * ran.
   */
  uint8_t may_have_executed;
  /**
   * The training mask: 1 if the model's own doing ended the call this way, 0 if it was the
   * infrastructure. A trainer should leave out the trajectory then.
   */
  uint8_t model_attributable;
  /**
   * Whose call it was.
   */
  const char *trajectory;
  /**
   * The length of `trajectory`.
   */
  size_t trajectory_len;
  /**
   * The call's "uniq_id".
   */
  const char *uniq_id;
  /**
   * The length of `uniq_id`.
   */
  size_t uniq_id_len;
  /**
   * What the tool printed or read, not copied. There for failures too, as far as it came.
   */
  const char *output;
  /**
   * The length of `output`.
   */
  size_t output_len;
  /**
   * Empty on success, else one line that says what went wrong.
   */
  const char *error;
  /**
   * The length of `error`.
   */
  size_t error_len;
  /**
   * Seconds from its acceptance to its hand-over to the sandbox, without the wait for a slot.
   */
  double queue_s;
  /**
   * Seconds of waiting for a slot.
   */
  double slot_s;
  /**
   * Seconds from the hand-over until the result was there.
   */
  double exec_s;
} te_result;

/**
 * Gives the next bytes of what is put: writes at most `len` of them to `data` and returns how many
 * that are, 0 at the end, or less than 0 if they cannot be had, which ends the put. `user` is what
 * was given with it. Called on the thread that puts, while that waits; it must not throw.
 */
typedef int64_t (*te_read_fn)(void *user, char *data, size_t len);

/**
 * Takes the next bytes of what is copied, all of them: 0 if it has, else it ends the copy. `user`
 * is what was given with it. Called on the thread that copies, while that waits; it must not
 * throw.
 */
typedef int (*te_write_fn)(void *user, const char *data, size_t len);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is loaded, such as "0.1.0": TE_VERSION if it is the one that
 * the header belongs to. Static text, with a NUL at its end.
 */
const char *te_version(void);

/**
 * The ABI's number: TE_ABI_VERSION of the header that the library was made with. Within one
 * number functions, status codes and, at the end of structs that the library allocates, fields
 * are only added: a program may go on if the library's number is its own header's.
 */
uint32_t te_abi_version(void);

/**
 * What went wrong in the last function that did not give TE_OK, of those called on this thread: a
 * line for people, in UTF-8, with a NUL at its end; "" if nothing has. It may hold what the host
 * passed, such as a file's name.
 *
 * The text belongs to the library, and is valid until the next function that does not give TE_OK
 * on this thread, or the thread's end. Never NULL.
 */
const char *te_last_error(void);

/**
 * The name of a status, such as "TE_CLOSED"; "TE_UNKNOWN" for a number that is none. Static text,
 * with a NUL at its end.
 */
const char *te_status_name(int32_t status);

/**
 * Frees what is in a buffer and leaves it empty, so that a second time does nothing. NULL does
 * nothing.
 */
void te_buffer_free(struct te_buffer *buffer);

/**
 * Has everything up to `level` (a te_log_level) that the library logs given to `function`, with
 * `user`. NULL, or TE_LOG_OFF, ends that. There is one log for the whole process; what was set
 * before is replaced, and not in use any more when this returns TE_OK.
 *
 * TE_LOGGER_TAKEN: the process has a logger already, because the host is a Rust program.
 * TE_TIMEOUT: a function that was set before has not returned for 10 seconds; nothing was
 * changed. Not to be called by a log function.
 */
te_status te_log_set(te_log_fn function, void *user, int32_t level);

/**
 * Makes an empty set of tools. On success `*tools` is the caller's, to be freed by
 * te_tools_free().
 */
te_status te_tools_new(struct te_tools **tools);

/**
 * Adds a tool. Executors that were started before do not have it.
 *
 * `schema` is a JSON object: {"name": "add", "description": "Adds.", "parameters": {"a": {"type":
 * "number", "description": "..."}}, "required": ["a"]}; only "name" is needed. Calls whose
 * arguments do not fit are answered by the library, and never get to the function.
 *
 * `user` is passed to the function, and to `user_free`, if that is not NULL, once: when these
 * tools and every executor, queue and call that was made with them are freed, on whatever thread
 * frees the last. After an error it is not called, and `user` stays the caller's.
 */
te_status te_tools_add(const struct te_tools *tools,
                       const char *schema,
                       size_t schema_len,
                       te_tool_fn function,
                       void *user,
                       te_free_fn user_free);

/**
 * Frees a set of tools. NULL does nothing. Executors that were started with them keep them.
 */
void te_tools_free(struct te_tools *tools);

/**
 * Answers a call with the output of a success. Does not block. A second answer is
 * TE_ALREADY_ANSWERED; one that comes too late, to a call that has ended otherwise, is thrown
 * away. After any other error the call still waits.
 */
te_status te_tool_reply_ok(const struct te_tool_reply *reply,
                           const char *output,
                           size_t output_len);

/**
 * Answers a call with an error, TE_OUTCOME_TOOL_ERROR: one line that says why the tool failed,
 * which the model is shown. Else as te_tool_reply_ok().
 */
te_status te_tool_reply_error(const struct te_tool_reply *reply,
                              const char *error,
                              size_t error_len);

/**
 * Answers a call with TE_OUTCOME_EXTERNAL_FAILED: the tool itself is broken, or cannot reach what
 * it needs, which is not the model's doing and not to be trained on. Else as
 * te_tool_reply_error(), for what the tool has against the call.
 */
te_status te_tool_reply_fail(const struct te_tool_reply *reply,
                             const char *error,
                             size_t error_len);

/**
 * Whether anybody still waits for the answer: `*wanted` is 0 once the call was answered or
 * cancelled, or its time is up. A tool that takes long looks now and then.
 */
te_status te_tool_reply_wanted(const struct te_tool_reply *reply, int32_t *wanted);

/**
 * Frees a reply. NULL does nothing. A call that has no answer ends as TE_OUTCOME_EXTERNAL_FAILED.
 */
void te_tool_reply_free(struct te_tool_reply *reply);

/**
 * Starts an executor. Blocks for as long as its sandboxes take to start: some milliseconds for
 * the embedded one.
 *
 * `config` is a JSON object. All keys may be left out, or be null; one that is not known is
 * refused, and te_last_error() names it. `{"local": {}}` is the embedded sandbox with all its
 * defaults; with none of "local", "fleet", "slurm" and "backends" there are in-process tools and
 * the ToolServer's only. Times are in seconds.
 *
 * ```text
 *     "local":  {"slots": 10, "data_dir": "...", "image": null, "user_ids": "auto",
 *                "images": {"pull": true, "platform": null or "amd64" or "arm64",
 *                           "auth_file": null, "cert_dir": null, "plain_http": ["host:port", ...],
 *                           "retries": 4, "timeout_s": 3600, "parallel": 4, "refresh_s": null,
 *                           "store_bytes": null},
 *                "max_output_chars": 50000, "max_output_file_bytes": 16777216,
 *                "max_file_bytes": 100000, "warm_slots": true, "seccomp": true,
 *                "adopt_orphans": false, "allow_unisolated": false,
 *                "limits": {"processes": 1024, "memory_bytes": 4294967296, "cpu": null,
 *                           "open_files": 4096, "file_bytes": 8589934592,
 *                           "workspace_bytes": 8589934592, "files": 1048576}, (null: no limit)
 *                "binds": [{"source": "/srv/data", "place": "/data", "writable": false}, ...],
 *                "env": {"NAME": "value", "LICENSE_KEY": null},  (null: this process's value)
 *                "path_prepend": ["/data/bin"], "devices": ["/dev/kvm"],
 *                "network": "none", "proxy" or "host", "allow_hosts": ["*.packages.example:443", ...],
 *                "ca_pem": "-----BEGIN CERTIFICATE-----...", "log_egress": false}
 *     "fleet":  {"urls": ["http://host:8080", ...], "token": "...", "unreachable_timeout_s": 30,
 *                "start_timeout_s": 60, "bad_server_pause_s": 30, "allow_unisolated": false,
 *                "slots": null,                              (null: all there are)
 *                "servers_file": "...", "servers_name": "name:port",   (in place of urls)
 *                "ca_pem": "-----BEGIN CERTIFICATE-----..."}
 *     "slurm":  {"program": "tool-executor", "min_servers": 1, "max_servers": null,
 *                "jobs": {"partition": "...", "account": "...", "time": "4:00:00",
 *                         "arguments": []},                 (null: inside an allocation)
 *                "slots_per_server": null, "server_arguments": [], "allow_unisolated": false,
 *                "start_timeout_s": 60, "idle_timeout_s": 300, "drain_before_s": 180,
 *                "unreachable_timeout_s": 30, "token": null}
 *     "backends": [{"name": "...", "local", "fleet" or "slurm": {...}, "spill_after_s": 0}, ...]
 *                (in place of these three: the first is preferred; each other one gets the
 *                trajectories for which those before it have no free slot for so long)
 *     "tool_server": {"url": "http://host:port", "token": "...", "concurrency": 16,
 *                     "ca_pem": "..."}
 *     "policy": {"allow_network": true, "require_sandbox": false,
 *                "require_stateful_sandbox": false,
 *                "unknown_arguments": "refuse", "output_order": "separate",
 *                "background": "end"}
 *     "tools":  {"builtin": true, "external": [SCHEMA, ...]}     (see te_tools_add)
 *     "batch_policy": "adaptive" or "window", "batch_window_s": 0.02, "max_batch_size": 200,
 *     "queue_capacity": 65536, "queue_timeout_s": 3600, "acquire_timeout_s": 600,
 *     "max_timeout_s": 600, "default_timeout_s": null, "answer_grace_s": 60, "reset_timeout_s": 60, "begin_timeout_s": 600,
 *     "close_timeout_s": 30,
 *     "on_lost_workspace": "refuse" or "start_empty", "io_threads": 8, "handler_threads": 16,
 *     "idle_limit_s": 0     (0: a trajectory may hold a slot without a call for ever)
 * ```
 *
 * What they mean is in the Rust documentation, under the same names: module `config`,
 * `ExecutorConfig` and its parts. Where this process is root, commands run as other users, who
 * must be able to pass through every directory on the way to "data_dir".
 *
 * Where commands would run without isolation – this machine makes no sandboxes, or sandbox servers
 * say so – it is TE_START_FAILED unless "allow_unisolated" is true; te_last_error() says what to
 * do.
 *
 * `tools` are tools of the host's own; NULL for none. They stay the caller's, who may free them
 * at once, or start further executors with them.
 *
 * On success `*executor` is the caller's, to be freed by te_executor_free(); after an error it is
 * NULL. A process that was forked from one which had made an executor is given TE_FORKED.
 */
te_status te_executor_new(const char *config,
                          size_t config_len,
                          const struct te_tools *tools,
                          struct te_executor **executor);

/**
 * What the executor is: a JSON object with "version", "backend" ("local", "fleet", "slurm",
 * "several" or null), facts about the embedded sandbox ("isolated", "not_isolated_because", ...)
 * or the same in "backends", with the "name" of each of several, "tools", the list of its tools as
 * OpenAI's chat API takes it, "prompt", the same as prose for a model's prompt, and "definitions",
 * the same as Hermes models expect it.
 *
 * On success `*description` is the caller's, to be freed by te_buffer_free().
 */
te_status te_describe(const struct te_executor *executor, struct te_buffer *description);

/**
 * The executor's counters and measurements up to now, or up to its end: a JSON object, documented
 * as `Stats` in the Rust documentation.
 *
 * On success `*stats` is the caller's, to be freed by te_buffer_free().
 */
te_status te_stats(const struct te_executor *executor, struct te_buffer *stats);

/**
 * Stops taking calls, waits for those that were accepted, for `timeout_s` seconds at most,
 * cancels what is left then, releases every slot and ends every thread. A negative `timeout_s` is
 * the configuration's "close_timeout_s". What is cancelled gets another 5 seconds to end, and the
 * cleaning-up 15.
 *
 * All functions may still be called: those that need a running executor give TE_CLOSED,
 * te_queue_next() gives the completions that are left, te_stats() the last statistics. A second
 * close waits for the first, and says the same.
 *
 * `*cancelled` is how many calls were cancelled, `*all_ended` 1, or 0 if code of the host's (a
 * tool) still blocks a thread of the library, which then ends when that returns. Either may be
 * NULL.
 *
 * Not to be called by a tool: it would wait for itself, until the time is up.
 */
te_status te_executor_close(const struct te_executor *executor,
                            double timeout_s,
                            uint64_t *cancelled,
                            int32_t *all_ended);

/**
 * Closes an executor that is not closed, as te_executor_close() with a negative timeout, and
 * frees the handle. NULL does nothing. Queues, calls and replies that were made with it stay
 * valid until they are freed themselves; threads that are inside a function with it leave it
 * unharmed.
 *
 * In a process that was forked from the one that made it, it returns at once and leaves alone
 * what the other process has.
 */
void te_executor_free(struct te_executor *executor);

/**
 * The outcome's name in JSON, such as "non_zero_exit"; "unknown" for a number that is none.
 * Static text, with a NUL at its end.
 */
const char *te_outcome_name(int32_t outcome);

/**
 * Facts about the run, as a JSON object: "exit_code", "signal", "sandboxed", "network_isolated",
 * byte counts, .... Made when it is first asked for; the text is the result's.
 */
te_status te_result_metadata(const struct te_result *result,
                             const char **metadata,
                             size_t *metadata_len);

/**
 * All of the result as a JSON object: "tag", "trajectory_id", "uniq_id", "success", "outcome",
 * "output", "error", "metadata", "may_have_executed", "model_attributable", "queue_s", "slot_s",
 * "exec_s". Made when it is first asked for; the text is the result's.
 */
te_status te_result_json(const struct te_result *result, const char **json, size_t *json_len);

/**
 * The result of which this is the JSON, as te_result_json() and te_queue_next_json() give it: for
 * hosts that keep results as JSON, and want one as text or a message after all. "tag",
 * "uniq_id", "success", "model_attributable" and the times may be left out; "success" and
 * "model_attributable" are what the outcome says.
 *
 * On success `*result` is the caller's, to be freed by te_result_free(); after an error it is
 * NULL.
 */
te_status te_result_read(const char *json, size_t json_len, struct te_result **result);

/**
 * The result as a model is shown it: <tool_response> text. Made when it is first asked for; the
 * text is the result's.
 */
te_status te_result_xml(const struct te_result *result, const char **xml, size_t *xml_len);

/**
 * The result as the message that answers its call, a JSON object with the call's id, in `form`:
 * "openai" ({"role": "tool", "tool_call_id", "content"}), "openai-responses" ({"type":
 * "function_call_output", "call_id", "output"}), "anthropic" ({"role": "user", "content":
 * [{"type": "tool_result", "tool_use_id", "content"}]}), "openai-function-call" ({"role":
 * "function", "content"}, to which the caller adds the tool's "name") or "sharegpt" ({"from":
 * "tool", "value"}). The message is the caller's, to be freed by te_buffer_free().
 */
te_status te_result_message(const struct te_result *result,
                            const char *form,
                            size_t form_len,
                            struct te_buffer *message);

/**
 * Frees a result and all that it points to. NULL does nothing.
 */
void te_result_free(struct te_result *result);

/**
 * Begins a trajectory with what it asks for beyond the executor's configuration, before its first
 * call, and blocks until it has a slot that is so. The spec is a JSON object; all keys may be left
 * out, others are TE_INVALID_SPEC, with the names of those that there are:
 *
 * ```text
 *     "image": "...", "snapshot": "...",          (not both)
 *     "user": "NAME or NUMBER, perhaps :GROUP", "workdir": "/...", "env": {"NAME": "value", ...},
 *     "limits": {"processes": ..., "memory_bytes": ..., "cpu": ..., "open_files": ...,
 *                "file_bytes": ..., "workspace_bytes": ..., "files": ...},
 *     "network": "none", "proxy" or "host", "allow_hosts": ["*.packages.example:443", ...],
 *     "background": "end" or "keep", "max_wall_s": ..., "max_idle_s": ...,
 *     "files": [{"path": "...", "content": "..." (or "base64": "..."), "mode": "0644"}, ...]
 * ```
 *
 * What they mean is in the Rust documentation, under the same names: `TrajectorySpec`. What the
 * sandbox cannot give, or its operator does not allow, is TE_NOT_BEGUN, before anything ran;
 * `*outcome` is then a te_outcome, as which the trajectory's calls end until it is released, else
 * TE_OUTCOME_OK. It may be NULL. A trajectory that has begun already, or made a call, is
 * TE_ALREADY_BEGUN, and has not changed.
 */
te_status te_begin(const struct te_executor *executor,
                   const char *trajectory,
                   size_t trajectory_len,
                   const char *spec,
                   size_t spec_len,
                   int32_t *outcome);

/**
 * Like te_begin(), but does not wait for the slot, only for room in the queue. Where it fails
 * later, the trajectory's calls end as te_begin()'s outcome would say.
 */
te_status te_submit_begin(const struct te_executor *executor,
                          const char *trajectory,
                          size_t trajectory_len,
                          const char *spec,
                          size_t spec_len);

/**
 * Runs a call and blocks until its result is there.
 *
 * `call` is a JSON object: {"name": "bash", "arguments": {"command": "ls"}, "uniq_id": "...",
 * "timeout_s": 30}. Only "name" is needed. "uniq_id" is the caller's id of the call, which the
 * result carries; a fresh one unless given. "timeout_s", from 1 to "max_timeout_s", limits the
 * run; else a number "timeout" in the arguments does, else the sandbox's 30 seconds. Other keys
 * are refused, but for "raw_text" and "origin", which the te_parse functions give.
 *
 * A call of OpenAI's (chat, Responses) or Anthropic's is taken as it is, with its id:
 * {"id", "type": "function", "function": {"name", "arguments": "{...}"}}, {"type":
 * "function_call", "call_id", "name", "arguments": "{...}"}, {"type": "tool_use", "id", "name",
 * "input": {...}}. te_result_message() gives its result in the same form.
 *
 * A trajectory's calls run one after the other, in the order in which they were submitted, in one
 * workspace, which it keeps until te_release(). Its id has 1 to 512 bytes.
 *
 * A tool that fails is a result, and so are a tool that does not exist, arguments that do not
 * fit, a sandbox that is lost: the status is TE_OK, and the result's outcome says how the call
 * ended. To end it early, call te_cancel_trajectory() on another thread.
 *
 * On success `*result` is the caller's, to be freed by te_result_free(); after an error it is
 * NULL, and nothing ran.
 */
te_status te_execute(const struct te_executor *executor,
                     const char *trajectory,
                     size_t trajectory_len,
                     const char *call,
                     size_t call_len,
                     struct te_result **result);

/**
 * Submits a call, whose result goes to `queue`, under `tag`. Never blocks: TE_QUEUE_FULL and
 * TE_COMPLETIONS_FULL say to fetch completions first.
 *
 * `call` is as in te_execute(). What is accepted ends exactly once, by a completion in the queue.
 * A call that is wrong in itself is accepted, and its completion is there at once.
 *
 * `handle` may be NULL. Else `*handle` is the caller's, to be freed by te_call_free(), which
 * does not end the call; after an error it is NULL, and nothing was submitted.
 */
te_status te_submit(const struct te_queue *queue,
                    const char *trajectory,
                    size_t trajectory_len,
                    const char *call,
                    size_t call_len,
                    uint64_t tag,
                    struct te_call **handle);

/**
 * Asks for the end of a call. Does not block. One that has not started ends as
 * TE_OUTCOME_CANCELLED at once; a running one is killed, and its completion comes when the last
 * of its processes is gone. For one that has ended it does nothing.
 */
te_status te_call_cancel(const struct te_call *call);

/**
 * Frees the handle; the call goes on. NULL does nothing.
 */
void te_call_free(struct te_call *call);

/**
 * Cancels everything of a trajectory that has not ended, see te_call_cancel(). Does not block;
 * every call still gets its result.
 */
te_status te_cancel_trajectory(const struct te_executor *executor,
                               const char *trajectory,
                               size_t trajectory_len);

/**
 * Ends a trajectory's use of its slot, after its earlier calls; empties the workspace first if
 * `reset_workspace` is not 0. Blocks until that is done. Without a reset the files stay until
 * another trajectory needs the slot. A trajectory without a slot, or unknown, is released
 * already.
 *
 * TE_RESET_FAILED says that the workspace could not be emptied: no trajectory gets the slot
 * before it is.
 */
te_status te_release(const struct te_executor *executor,
                     const char *trajectory,
                     size_t trajectory_len,
                     int32_t reset_workspace);

/**
 * Like te_release(), but does not wait for it to be done.
 */
te_status te_submit_release(const struct te_executor *executor,
                            const char *trajectory,
                            size_t trajectory_len,
                            int32_t reset_workspace);

/**
 * The tool calls in what a model wrote: a JSON array of {"name", "arguments", "uniq_id",
 * "raw_text"}, each of which te_execute() and te_submit() take as it is. Hermes and GLM formats
 * only, as the reference finds them: what cannot be read is left out. te_parse_text() reads all
 * formats.
 *
 * On success `*calls` is the caller's, to be freed by te_buffer_free().
 */
te_status te_parse_calls(const char *model_text, size_t model_text_len, struct te_buffer *calls);

/**
 * The tool calls in a text that a model wrote, in their order: a JSON array of {"name",
 * "arguments", "uniq_id", "raw_text", "origin"}, each of which te_execute() and te_submit() take
 * as it is. The text has to be whole: half a call is one that cannot be read.
 *
 * `format` is "auto", which reads every format that has marks of its own, or one of "hermes",
 * "qwen3-coder", "glm", "llama-3", "llama-4", "mistral", "deepseek-v3", "deepseek-v3-1",
 * "deepseek-v3-2", "kimi-k2", "minimax-m1", "minimax-m2", "anthropic-xml", "harmony", "granite",
 * "gemma", "fenced-bash"; empty is "auto". The executor's tools say what a text without marks
 * calls, and which types arguments have.
 *
 * What is a call by its marks and cannot be read is among the calls, and its result is
 * TE_OUTCOME_INVALID_CALL, with the place and the reason: its "origin" has "unreadable". Small
 * damage that leaves one reading is mended; "origin" has "repairs" then, and the result the
 * metadata "call_repairs".
 *
 * On success `*calls` is the caller's, to be freed by te_buffer_free().
 */
te_status te_parse_text(const struct te_executor *executor,
                        const char *model_text,
                        size_t model_text_len,
                        const char *format,
                        size_t format_len,
                        struct te_buffer *calls);

/**
 * The tool calls in a message that a model wrote, as te_parse_text() gives them. `message` is a
 * JSON object: an assistant's message of OpenAI's chat ("tool_calls", "function_call") or of
 * Anthropic's ("tool_use" in its content), an item of OpenAI's Responses, a turn of ShareGPT. A
 * message without such calls has those of its text, in `format`. One that no model wrote has none.
 *
 * On success `*calls` is the caller's, to be freed by te_buffer_free().
 */
te_status te_parse_message(const struct te_executor *executor,
                           const char *message,
                           size_t message_len,
                           const char *format,
                           size_t format_len,
                           struct te_buffer *calls);

/**
 * Makes a completion queue. `capacity`, from 1 to 16,777,216, bounds the calls that were
 * submitted to it and not fetched from it.
 *
 * On success `*queue` is the caller's, to be freed by te_queue_free(); after an error it is NULL.
 * It may outlive the executor's handle.
 */
te_status te_queue_new(const struct te_executor *executor,
                       size_t capacity,
                       struct te_queue **queue);

/**
 * The next completion; blocks for `timeout_s` seconds at most, not at all with 0, for a year with
 * infinity. TE_TIMEOUT: none came in time. TE_CLOSED: the executor is closed and all were
 * fetched; a wait that is under way ends so, too.
 *
 * On success `*result` is the caller's, to be freed by te_result_free(); otherwise it is NULL.
 */
te_status te_queue_next(const struct te_queue *queue, double timeout_s, struct te_result **result);

/**
 * Up to `max` completions, at least 1: blocks as te_queue_next() for the first, and takes what
 * else is there.
 *
 * `results` has room for `max`. On success the first `*count` of them are the caller's, each to
 * be freed by te_result_free(); otherwise `*count` is 0.
 */
te_status te_queue_next_many(const struct te_queue *queue,
                             size_t max,
                             double timeout_s,
                             struct te_result **results,
                             size_t *count);

/**
 * Up to `max` completions, at least 1, as te_queue_next_many() takes them: a JSON array of what
 * te_result_json() gives. For hosts to which one text costs less than many fields.
 *
 * On success `*results` is the caller's, to be freed by te_buffer_free(); otherwise it is empty.
 */
te_status te_queue_next_json(const struct te_queue *queue,
                             size_t max,
                             double timeout_s,
                             struct te_buffer *results);

/**
 * A file descriptor for poll(), select() or epoll, in a loop that waits for other things too:
 * readable (POLLIN) exactly as long as completions wait to be fetched, level-triggered. So: when
 * it is readable, fetch with te_queue_next_many(..., 0, ...); what is not fetched keeps it
 * readable. With epoll's edge trigger, fetch until TE_TIMEOUT. No completion is missed; where
 * several threads fetch, one may find that another was faster.
 *
 * It is an eventfd and the library's own: not to be read from, written to or closed. Valid until
 * the queue is freed. It does not become readable because the executor is closed; te_queue_next()
 * says so. TE_UNSUPPORTED on systems other than Linux.
 */
te_status te_queue_fd(const struct te_queue *queue, int *fd);

/**
 * How many calls were submitted to the queue and not fetched from it. At 0 nothing will come.
 */
te_status te_queue_outstanding(const struct te_queue *queue, size_t *outstanding);

/**
 * Frees a queue. NULL does nothing. Calls that were submitted to it go on, and how they end is
 * not told. A thread that waits in te_queue_next() goes on waiting, unharmed.
 */
void te_queue_free(struct te_queue *queue);

/**
 * Keeps the files of a trajectory as they are, for others to begin from, after the trajectory's
 * earlier calls and before its later ones. Blocks for its turn and some milliseconds. Nothing is
 * copied, and the trajectory goes on with its files. What is in memory – /dev/shm, and in a
 * machine on the host's files what is beside the workspace, /tmp and the home directory – is not
 * kept, and gone.
 *
 * `options` is a JSON object: {"end_processes": false}; it may be left out (a length of 0). A
 * trajectory that keeps shells, terminals or background processes is TE_KEEPS_PROCESSES unless it
 * is true.
 *
 * On success `*snapshot` is a JSON object {"id", "container", "parent", "age_s", "layers",
 * "bytes", "ended_processes"}, the caller's, to be freed by te_buffer_free(). The snapshot is kept
 * until te_snapshot_drop() or the executor's end. "bytes" is null: te_snapshots() counts it.
 */
te_status te_snapshot(const struct te_executor *executor,
                      const char *trajectory,
                      size_t trajectory_len,
                      const char *options,
                      size_t options_len,
                      struct te_buffer *snapshot);

/**
 * Gives a snapshot up, by its "id". What began from it goes on. TE_NOT_FOUND if there is none.
 */
te_status te_snapshot_drop(const struct te_executor *executor, const char *id, size_t id_len);

/**
 * The snapshots that are kept, the oldest first: a JSON array of what te_snapshot() gives.
 *
 * On success `*snapshots` is the caller's, to be freed by te_buffer_free().
 */
te_status te_snapshots(const struct te_executor *executor, struct te_buffer *snapshots);

/**
 * Begins trajectories with the files that another has now, and blocks until each of them has its
 * slot or cannot have one; in order as te_snapshot().
 *
 * `request` is a JSON object: {"to": ["id", ...], "end_processes": false, "spec": {}}; only "to"
 * is needed. "spec" is what else each begins with, without "image" and "snapshot".
 *
 * On success `*forks` is a JSON array with an object for each of "to", in their order:
 * {"trajectory_id", "begun", "outcome", "error"}, where "begun" is whether it has begun, "error"
 * says why not, and "outcome" how its calls end then, if they do. It is the caller's, to be freed
 * by te_buffer_free(). Any other status: nothing has begun.
 */
te_status te_fork(const struct te_executor *executor,
                  const char *trajectory,
                  size_t trajectory_len,
                  const char *request,
                  size_t request_len,
                  struct te_buffer *forks);

/**
 * Runs a command that judges what a trajectory has left, in the trajectory's slot, in a machine in
 * which nothing of the trajectory runs; in order as te_snapshot(). Blocks until it has ended. The
 * shells, terminals and background processes of the trajectory are ended for that; its files are
 * as they were afterwards. What a grader has to heed is in docs/grading.md.
 *
 * `spec` is a JSON object:
 *
 * ```text
 *     {"command": "exec python3 -I grader.py", "files": [{"path": "grader.py", "content": "...",
 *      "base64": "...", "mode": "0755"}, ...], "files_at": "/grade", "stdin": "...",
 *      "env": {"NAME": "value"}, "user": null, "judged_paths": ["/app"], "timeout_s": 60}
 * ```
 *
 * of which only "command" is needed. A command that fails is TE_OK too: on success `*grade` is a
 * JSON object {"result", "stdout", "stderr", "verdict", "ended_processes"}, where "result" is that
 * of a call (te_result_json()), and "verdict" the text that the command wrote to the descriptor
 * whose number is in TOOL_EXECUTOR_VERDICT_FD, or null. It is the caller's, to be freed by
 * te_buffer_free().
 */
te_status te_grade(const struct te_executor *executor,
                   const char *trajectory,
                   size_t trajectory_len,
                   const char *spec,
                   size_t spec_len,
                   struct te_buffer *grade);

/**
 * Reads a part of a file of a trajectory's workspace, after the trajectory's earlier calls and
 * before its later ones. Blocks for its turn. A tool must not ask for its own trajectory's files:
 * it would wait for itself.
 *
 * `request` is a JSON object: {"path": "a/b", "offset": 0, "max_bytes": 5000000, "sha256": false,
 * "file_sha256": false}; only "path" is needed, and 5,000,000 is the most.
 *
 * On success `*content` has the bytes, and `*info` a JSON object with "path", "offset",
 * "file_size", "truncated", "mime", and the checksums that were asked for. Both are the caller's,
 * to be freed by te_buffer_free(). `info` may be NULL.
 */
te_status te_artifact_read(const struct te_executor *executor,
                           const char *trajectory,
                           size_t trajectory_len,
                           const char *request,
                           size_t request_len,
                           struct te_buffer *content,
                           struct te_buffer *info);

/**
 * Lists files of a trajectory's workspace; in order and blocking as te_artifact_read().
 *
 * `request` is a JSON object: {"path": ".", "recursive": false, "max_entries": 5000}; all may be
 * left out, and so may it (a length of 0).
 *
 * On success `*list` is a JSON object {"entries": [{"path", "is_dir", "size", "mtime"}, ...],
 * "truncated"}, the caller's, to be freed by te_buffer_free().
 */
te_status te_artifact_list(const struct te_executor *executor,
                           const char *trajectory,
                           size_t trajectory_len,
                           const char *request,
                           size_t request_len,
                           struct te_buffer *list);

/**
 * A .tar.gz of a trajectory's workspace, or of a part of it, in memory; in order and blocking as
 * te_artifact_read(). Larger ones go through te_archive_copy().
 *
 * `request` is a JSON object: {"path": ".", "max_bytes": 5000000, "max_entries": 5000}; all may
 * be left out, and so may it (a length of 0).
 *
 * On success `*archive` has the bytes, and `*info` a JSON object {"bytes", "entry_count",
 * "truncated"}. Both are the caller's, to be freed by te_buffer_free(). `info` may be NULL.
 */
te_status te_artifact_archive(const struct te_executor *executor,
                              const char *trajectory,
                              size_t trajectory_len,
                              const char *request,
                              size_t request_len,
                              struct te_buffer *archive,
                              struct te_buffer *info);

/**
 * Writes a whole file of a trajectory's workspace to the file descriptor `fd`, without holding it
 * in memory, and says how many bytes that were; in order and blocking as te_artifact_read(). `fd`
 * stays the caller's, and must be one that blocks. After an error it has some part of the file; a
 * pipe that has no reader is TE_IO and brings no SIGPIPE. `bytes` may be NULL.
 */
te_status te_artifact_copy(const struct te_executor *executor,
                           const char *trajectory,
                           size_t trajectory_len,
                           const char *path,
                           size_t path_len,
                           int fd,
                           uint64_t *bytes);

/**
 * Writes a .tar.gz to the file descriptor `fd`, as te_artifact_copy() does; the limits of
 * `request`, which is that of te_artifact_archive(), may be as large as one likes; "format": "tar"
 * is an archive that is not compressed. On success
 * `*info` is as there; it may be NULL.
 */
te_status te_archive_copy(const struct te_executor *executor,
                          const char *trajectory,
                          size_t trajectory_len,
                          const char *request,
                          size_t request_len,
                          int fd,
                          struct te_buffer *info);

/**
 * Puts a file, or what a tar stream has, into a trajectory's machine; in order and blocking as
 * te_artifact_read(). A trajectory that has no slot yet begins with this. A tool must not put
 * files into its own trajectory's machine: it would wait for itself.
 *
 * `request` is a JSON object: {"path": "/srv/task/run.sh", "kind": "file", "mode": 493, "owner":
 * "root", "size": 12}; only "path" is needed. "kind" is "file" or "tar" (plain or compressed by
 * gzip, into the directory "path"); "mode" is a file's, 420 (octal 644) by default; "owner" is a
 * user of the machine, and after a colon a group, where a slot has several ids; "keep_owners" has
 * a tar stream say whose its entries are; "size" says beforehand how long a file is.
 *
 * `read` gives the bytes. Nothing half is left after an error: TE_DISK_FULL if there is no room,
 * TE_BAD_ARCHIVE, TE_REFUSED, and those of reading. Of a tree that goes into a directory that was
 * there, the message says how many entries are in place.
 *
 * On success `*info` is a JSON object {"path", "bytes", "entry_count", "skipped"}, the caller's,
 * to be freed by te_buffer_free(); `info` may be NULL.
 */
te_status te_files_put(const struct te_executor *executor,
                       const char *trajectory,
                       size_t trajectory_len,
                       const char *request,
                       size_t request_len,
                       te_read_fn read,
                       void *user,
                       struct te_buffer *info);

/**
 * As te_files_put(), with the bytes that the file descriptor `fd` gives until its end. `fd` stays
 * the caller's, and must be one that blocks.
 */
te_status te_files_put_fd(const struct te_executor *executor,
                          const char *trajectory,
                          size_t trajectory_len,
                          const char *request,
                          size_t request_len,
                          int fd,
                          struct te_buffer *info);

/**
 * Puts what is in a directory of this host – files, directories, symlinks – into a directory of a
 * trajectory's machine; as te_files_put().
 */
te_status te_tree_put(const struct te_executor *executor,
                      const char *trajectory,
                      size_t trajectory_len,
                      const char *from,
                      size_t from_len,
                      const char *directory,
                      size_t directory_len,
                      struct te_buffer *info);

/**
 * As te_artifact_copy(), with `write` in the place of a file descriptor.
 */
te_status te_artifact_copy_to(const struct te_executor *executor,
                              const char *trajectory,
                              size_t trajectory_len,
                              const char *path,
                              size_t path_len,
                              te_write_fn write,
                              void *user,
                              uint64_t *bytes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TOOL_EXECUTOR_H */

/** The two arguments, pointer and length, of a text that ends with a NUL. Its argument is evaluated
 * twice. */
#define TE_STR(text) (text), strlen(text)
