//! Thinking, in which no call is one.
//!
//! What stands between an opening and a closing tag is skipped. Thinking that is not closed lasts
//! to the end of the text, as in the chat templates; [`Parsed::unclosed_thinking`](super::Parsed)
//! says so. A closing tag without an opening one, the first of its text, ends thinking that the
//! prompt opened: all before it was thought (the templates of DeepSeek R1, Qwen3-Thinking and
//! GLM-4.5 split there). gpt-oss thinks in a channel of its own, see [`super::harmony`].
//!
//! Sources: the chat templates of Qwen3, GLM-4.6 and DeepSeek R1 (`<think>`), Seed-OSS
//! (`<seed:think>`), LongCat (`<longcat_think>`), Kimi-VL-Thinking (`◁think▷`), Command A
//! Reasoning (`<|START_THINKING|>`), Magistral and mistral-common's special tokens (`[THINK]`).

/// The opening tags.
pub(super) const OPEN: [&str; 9] = [
    "<think>",
    "<thinking>",
    "<thought>",
    "<reasoning>",
    "<seed:think>",
    "<longcat_think>",
    "<|START_THINKING|>",
    "[THINK]",
    "◁think▷",
];

/// The closing tag of each.
pub(super) const CLOSE: [&str; 9] = [
    "</think>",
    "</thinking>",
    "</thought>",
    "</reasoning>",
    "</seed:think>",
    "</longcat_think>",
    "<|END_THINKING|>",
    "[/THINK]",
    "◁/think▷",
];
