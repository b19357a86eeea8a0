//! The marks that open a call, a wrapper of calls, or thinking; and the tags of the families that
//! write calls in tags.

use super::{Format, think};

/// How a family writes its tags.
#[derive(Debug)]
pub(super) struct Tags {
    pub(super) format: Format,
    /// Opens and closes a block of calls.
    pub(super) block: (&'static str, &'static str),
    /// The beginning of the tag that opens a call, and the tag that closes it.
    pub(super) call: (&'static str, &'static str),
    /// The beginning of the tag that opens an argument, and the tag that closes it.
    pub(super) argument: (&'static str, &'static str),
    /// Names are `name="f"`, not just `f`.
    pub(super) attributes: bool,
    /// A line break at the beginning and one at the end of a value belong to the tags.
    pub(super) line_breaks: bool,
}

pub(super) static ANTHROPIC: Tags = Tags {
    format: Format::Anthropic,
    block: ("<function_calls>", "</function_calls>"),
    call: ("<invoke ", "</invoke>"),
    argument: ("<parameter ", "</parameter>"),
    attributes: true,
    line_breaks: false,
};

pub(super) static MINIMAX_M2: Tags = Tags {
    format: Format::MiniMaxM2,
    block: ("<minimax:tool_call>", "</minimax:tool_call>"),
    call: ("<invoke ", "</invoke>"),
    argument: ("<parameter ", "</parameter>"),
    attributes: true,
    line_breaks: false,
};

pub(super) static DSML: Tags = Tags {
    format: Format::DeepSeekV32,
    block: ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    call: ("<｜DSML｜invoke ", "</｜DSML｜invoke>"),
    argument: ("<｜DSML｜parameter ", "</｜DSML｜parameter>"),
    attributes: true,
    line_breaks: false,
};

pub(super) static QWEN3_CODER: Tags = Tags {
    format: Format::Qwen3Coder,
    block: ("<tool_call>", "</tool_call>"),
    call: ("<function=", "</function>"),
    argument: ("<parameter=", "</parameter>"),
    attributes: false,
    line_breaks: true,
};

/// What a mark opens (or, for thinking, closes).
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    /// `<tool_call>`: Hermes, Qwen3-Coder, GLM; which of them, its inside tells.
    ToolCall,
    /// `<function=`: Qwen3-Coder without its wrapper, or Llama 3.
    Function,
    /// `<tool_calls>`
    ToolCalls,
    /// A wrapper of `<invoke name="f">` elements.
    Invokes(&'static Tags),
    /// Such an element without its wrapper.
    Invoke(&'static Tags),
    DeepSeekSection,
    DeepSeekCall,
    KimiSection,
    KimiCall,
    PythonTag,
    PythonStart,
    GraniteCalls,
    MistralCalls,
    HarmonyHeader,
    BashFence,
    GemmaFence,
    /// The index is that of the kind in [`think::OPEN`].
    ThinkStart(usize),
    ThinkEnd,
}

/// The marks that count when `format` is to be read.
pub(super) fn marks_of(format: Format) -> Vec<(&'static str, Mark)> {
    let tool_call = [("<tool_call>", Mark::ToolCall)];
    let function = [("<function=", Mark::Function)];
    let python_tag = [("<|python_tag|>", Mark::PythonTag)];
    let python_start = [("<|python_start|>", Mark::PythonStart)];
    let mistral = [("[TOOL_CALLS]", Mark::MistralCalls)];
    let deepseek = [
        ("<｜tool▁calls▁begin｜>", Mark::DeepSeekSection),
        ("<｜tool▁call▁begin｜>", Mark::DeepSeekCall),
    ];
    let dsml = [
        ("<｜DSML｜function_calls>", Mark::Invokes(&DSML)),
        ("<｜DSML｜tool_calls>", Mark::Invokes(&DSML)),
        ("<｜DSML｜invoke ", Mark::Invoke(&DSML)),
    ];
    let kimi = [
        ("<|tool_calls_section_begin|>", Mark::KimiSection),
        ("<|tool_call_begin|>", Mark::KimiCall),
    ];
    let minimax_m1 = [("<tool_calls>", Mark::ToolCalls)];
    let minimax_m2 = [("<minimax:tool_call>", Mark::Invokes(&MINIMAX_M2))];
    let anthropic = [("<function_calls>", Mark::Invokes(&ANTHROPIC))];
    let invoke = |tags| [("<invoke ", Mark::Invoke(tags))];
    let harmony = [("<|channel|>", Mark::HarmonyHeader), ("<|start|>", Mark::HarmonyHeader)];
    let granite = [("<|tool_call|>", Mark::GraniteCalls)];

    let mut marks = Vec::with_capacity(64);
    for (kind, (open, close)) in think::OPEN.into_iter().zip(think::CLOSE).enumerate() {
        marks.extend([(open, Mark::ThinkStart(kind)), (close, Mark::ThinkEnd)]);
    }
    match format {
        Format::Auto => {
            marks.extend(tool_call);
            marks.extend(function);
            marks.extend(minimax_m1);
            marks.extend(anthropic);
            marks.extend(minimax_m2);
            marks.extend(invoke(&ANTHROPIC));
            marks.extend(python_tag);
            marks.extend(python_start);
            marks.extend(granite);
            marks.extend(kimi);
            marks.extend(harmony);
            marks.extend(mistral);
            marks.extend(deepseek);
            marks.extend(dsml);
        }
        Format::Hermes | Format::Glm => marks.extend(tool_call),
        Format::Qwen3Coder => {
            marks.extend(tool_call);
            marks.extend(function);
        }
        Format::Llama3 => {
            marks.extend(python_tag);
            marks.extend(function);
        }
        Format::Llama4 => {
            marks.extend(python_start);
            marks.extend(python_tag);
        }
        Format::Mistral => marks.extend(mistral),
        Format::DeepSeekV3 | Format::DeepSeekV31 => marks.extend(deepseek),
        Format::DeepSeekV32 => marks.extend(dsml),
        Format::KimiK2 => marks.extend(kimi),
        Format::MiniMaxM1 => marks.extend(minimax_m1),
        Format::MiniMaxM2 => {
            marks.extend(minimax_m2);
            marks.extend(invoke(&MINIMAX_M2));
        }
        Format::Anthropic => {
            marks.extend(anthropic);
            marks.extend(invoke(&ANTHROPIC));
        }
        Format::Harmony => marks.extend(harmony),
        Format::Granite => {
            marks.extend(granite);
            marks.extend(tool_call);
        }
        Format::Gemma => {
            marks.extend([("```tool_code", Mark::GemmaFence), ("```json", Mark::GemmaFence)]);
        }
        Format::FencedBash => {
            // The longer name first.
            for fence in ["```mswea_bash_command", "```bash", "```shell", "```sh"] {
                marks.push((fence, Mark::BashFence));
            }
        }
    }
    marks
}
