// The C ABI for C++17: owners for the handles, string_view for text, and no exceptions. Nothing but
// this file and tool_executor.h is needed.
//
//     tool_executor::Executor executor;
//     if (tool_executor::Status s = executor.start(R"({"local": {}})"); !s) return puts(s.message), 1;
//     tool_executor::Result result;
//     executor.execute("agent-1", R"({"name": "bash", "arguments": {"command": "ls"}})", result);
//     std::cout << result.output();
//
// What holds for threads, forks and lifetimes is at the top of tool_executor.h.
#ifndef TOOL_EXECUTOR_HPP
#define TOOL_EXECUTOR_HPP

#include <functional>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tool_executor.h"

namespace tool_executor {

/// What a function says. The message is this thread's, until its next error.
struct [[nodiscard]] Status {
    te_status code = TE_OK;
    const char *message = "";

    Status(te_status code) : code(code), message(code == TE_OK ? "" : te_last_error()) {}
    explicit operator bool() const { return code == TE_OK; }
    bool operator==(te_status other) const { return code == other; }
    bool operator!=(te_status other) const { return code != other; }
};

template <typename T, void (*Free)(T *)> struct Deleter {
    void operator()(T *handle) const { Free(handle); }
};
template <typename T, void (*Free)(T *)> using Handle = std::unique_ptr<T, Deleter<T, Free>>;

/// Takes what a C function puts into a place.
template <typename H> class Into {
    H &handle_;
    typename H::pointer place_ = nullptr;

  public:
    explicit Into(H &handle) : handle_(handle) {}
    Into(const Into &) = delete;
    ~Into() { handle_.reset(place_); }
    operator typename H::pointer *() { return &place_; }
};

/// Bytes of the library's, such as JSON or a file.
class Buffer {
    te_buffer buffer_{nullptr, 0};

  public:
    Buffer() = default;
    Buffer(Buffer &&other) noexcept : buffer_(std::exchange(other.buffer_, {nullptr, 0})) {}
    Buffer &operator=(Buffer other) noexcept { return std::swap(buffer_, other.buffer_), *this; }
    ~Buffer() { te_buffer_free(&buffer_); }
    std::string_view view() const { return {buffer_.data, buffer_.len}; }
    /// For a C function to fill.
    te_buffer *into() { return te_buffer_free(&buffer_), &buffer_; }
};

/// What a call gave. The views live as long as it does.
class Result {
    Handle<te_result, te_result_free> handle_;

  public:
    Result() = default;
    explicit Result(te_result *result) : handle_(result) {}
    explicit operator bool() const { return handle_ != nullptr; }
    const te_result *operator->() const { return handle_.get(); }
    Into<decltype(handle_)> into() { return Into(handle_); }
    std::string_view output() const { return {handle_->output, handle_->output_len}; }
    std::string_view error() const { return {handle_->error, handle_->error_len}; }
    /// The training mask: whether the model's own doing ended the call this way.
    bool model_attributable() const { return handle_->model_attributable != 0; }
    std::string_view trajectory() const { return {handle_->trajectory, handle_->trajectory_len}; }
    std::string_view metadata() const { return text(te_result_metadata); }
    std::string_view json() const { return text(te_result_json); }
    std::string_view xml() const { return text(te_result_xml); }

  private:
    template <typename F> std::string_view text(F get) const {
        const char *data = "";
        size_t len = 0;
        get(handle_.get(), &data, &len);
        return {data, len};
    }
};

/// The answer that a tool owes. Gone without one, the call ends as TE_OUTCOME_EXTERNAL_FAILED.
class Reply {
    Handle<te_tool_reply, te_tool_reply_free> handle_;

  public:
    explicit Reply(te_tool_reply *reply) : handle_(reply) {}
    Status ok(std::string_view output) {
        return te_tool_reply_ok(handle_.get(), output.data(), output.size());
    }
    Status error(std::string_view error) {
        return te_tool_reply_error(handle_.get(), error.data(), error.size());
    }
    bool wanted() const {
        int32_t wanted = 0;
        return te_tool_reply_wanted(handle_.get(), &wanted) == TE_OK && wanted;
    }
};

/// A call of a tool. The views live until the tool returns.
struct Call {
    std::string_view name, trajectory, uniq_id, arguments;
    double remaining_s;
};

/// A tool: it must not throw, and may keep the reply to answer later.
using Tool = std::function<void(const Call &, Reply)>;

/// Tools of the program's own.
class Tools {
    Handle<te_tools, te_tools_free> handle_;

    static int32_t run(void *user, const te_tool_call *call, te_tool_reply *reply) {
        (*static_cast<Tool *>(user))({{call->name, call->name_len},
                                      {call->trajectory, call->trajectory_len},
                                      {call->uniq_id, call->uniq_id_len},
                                      {call->arguments, call->arguments_len},
                                      call->remaining_s},
                                     Reply(reply));
        return 0;
    }
    static void forget(void *user) { delete static_cast<Tool *>(user); }

  public:
    Status add(std::string_view schema, Tool tool) {
        if (!handle_)
            if (Status made = te_tools_new(Into(handle_)); !made) return made;
        auto *owned = new (std::nothrow) Tool(std::move(tool));
        if (!owned) return TE_NULL;
        Status added =
            te_tools_add(handle_.get(), schema.data(), schema.size(), run, owned, forget);
        if (!added) delete owned;
        return added;
    }
    const te_tools *get() const { return handle_.get(); }
};

/// Collects the results of what was submitted to it.
class Queue {
    Handle<te_queue, te_queue_free> handle_;

  public:
    Into<decltype(handle_)> into() { return Into(handle_); }
    Status submit(std::string_view trajectory, std::string_view call, uint64_t tag) {
        return te_submit(handle_.get(), trajectory.data(), trajectory.size(), call.data(),
                         call.size(), tag, nullptr);
    }
    /// TE_TIMEOUT: none in time. TE_CLOSED: none will come.
    Status next(double timeout_s, Result &result) {
        return te_queue_next(handle_.get(), timeout_s, result.into());
    }
    Status next_many(size_t max, double timeout_s, std::vector<Result> &results) {
        std::vector<te_result *> places(max);
        size_t count = 0;
        Status status =
            te_queue_next_many(handle_.get(), max, timeout_s, places.data(), &count);
        for (size_t i = 0; i < count; i++) results.emplace_back(places[i]);
        return status;
    }
    /// For poll(): readable as long as completions wait; -1 without one.
    int fd() const {
        int fd = -1;
        te_queue_fd(handle_.get(), &fd);
        return fd;
    }
    size_t outstanding() const {
        size_t outstanding = 0;
        te_queue_outstanding(handle_.get(), &outstanding);
        return outstanding;
    }
};

/// The executor. Closed when it goes.
class Executor {
    Handle<te_executor, te_executor_free> handle_;

  public:
    Status start(std::string_view config, const Tools &tools = {}) {
        return te_executor_new(config.data(), config.size(), tools.get(), Into(handle_));
    }
    Status execute(std::string_view trajectory, std::string_view call, Result &result) {
        return te_execute(handle_.get(), trajectory.data(), trajectory.size(), call.data(),
                          call.size(), result.into());
    }
    Status queue(size_t capacity, Queue &queue) {
        return te_queue_new(handle_.get(), capacity, queue.into());
    }
    Status cancel(std::string_view trajectory) {
        return te_cancel_trajectory(handle_.get(), trajectory.data(), trajectory.size());
    }
    Status release(std::string_view trajectory, bool reset) {
        return te_release(handle_.get(), trajectory.data(), trajectory.size(), reset);
    }
    Status submit_release(std::string_view trajectory, bool reset) {
        return te_submit_release(handle_.get(), trajectory.data(), trajectory.size(), reset);
    }
    Status read(std::string_view trajectory, std::string_view request, Buffer &content) {
        return te_artifact_read(handle_.get(), trajectory.data(), trajectory.size(),
                                request.data(), request.size(), content.into(), nullptr);
    }
    Status list(std::string_view trajectory, std::string_view request, Buffer &list) {
        return te_artifact_list(handle_.get(), trajectory.data(), trajectory.size(),
                                request.data(), request.size(), list.into());
    }
    Status stats(Buffer &stats) const { return te_stats(handle_.get(), stats.into()); }
    Status describe(Buffer &text) const { return te_describe(handle_.get(), text.into()); }
    /// Negative: as long as the configuration says.
    Status close(double timeout_s = -1) {
        return te_executor_close(handle_.get(), timeout_s, nullptr, nullptr);
    }
    te_executor *get() const { return handle_.get(); }
};

} // namespace tool_executor

#endif
