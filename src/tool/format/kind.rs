//! The names of the text forms.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A form in which models write tool calls into their text.
///
/// `Display` and serde use the kebab-case name ([`as_str`](Self::as_str)). `FromStr` also accepts
/// other spellings (`DeepSeek_V3.1`, `qwen3_coder`) and the names of models that write the form
/// (`qwen3`, `gpt-oss`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Format {
    /// Every marked form, wherever it stands; an unmarked one (bare JSON, `[f(x=1)]`) only if it is
    /// the whole message and names a registered tool; no fenced blocks.
    #[default]
    Auto,
    /// `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5, Qwen 3.
    Hermes,
    /// `<tool_call><function=f><parameter=k>v</parameter></function></tool_call>`.
    Qwen3Coder,
    /// `<tool_call>f` and `<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`: GLM-4.5 and
    /// later; also the older `<tool_call>f{…}</tool_call>`.
    Glm,
    /// `{"name": "f", "parameters": {…}}`, bare or after `<|python_tag|>`, several joined by `;`;
    /// `<function=f>{…}</function>`; `<|python_tag|>f.call(k="v")`.
    Llama3,
    /// `[f(k="v"), g()]`, bare or between `<|python_start|>` and `<|python_end|>`.
    Llama4,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}]`; `[TOOL_CALLS]f[ARGS]{…}`.
    Mistral,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f` and fenced JSON: DeepSeek V3 and R1.
    DeepSeekV3,
    /// `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`.
    DeepSeekV31,
    /// `<｜DSML｜invoke name="f">` with `<｜DSML｜parameter name="k" string="true">`.
    DeepSeekV32,
    /// `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`.
    KimiK2,
    /// `<tool_calls>` with a JSON object a line.
    MiniMaxM1,
    /// `<minimax:tool_call><invoke name="f"><parameter name="k">v</parameter></invoke>`.
    MiniMaxM2,
    /// `<function_calls><invoke name="f"><parameter name="k">v</parameter></invoke>`, the text form
    /// of Anthropic's models. Their API has [`MessageForm::Anthropic`](super::MessageForm).
    Anthropic,
    /// `<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>`: gpt-oss.
    Harmony,
    /// `<|tool_call|>[{"name": "f", "arguments": {…}}]`.
    Granite,
    /// A Python call or JSON in a fenced `tool_code` block, or as the whole message.
    Gemma,
    /// Exactly one fenced `bash` block a message, a call of `bash`: mini-swe-agent and its kin.
    FencedBash,
}

impl Format {
    /// Every format, `Auto` first.
    pub const ALL: [Format; 18] = [
        Format::Auto,
        Format::Hermes,
        Format::Qwen3Coder,
        Format::Glm,
        Format::Llama3,
        Format::Llama4,
        Format::Mistral,
        Format::DeepSeekV3,
        Format::DeepSeekV31,
        Format::DeepSeekV32,
        Format::KimiK2,
        Format::MiniMaxM1,
        Format::MiniMaxM2,
        Format::Anthropic,
        Format::Harmony,
        Format::Granite,
        Format::Gemma,
        Format::FencedBash,
    ];

    /// The format's kebab-case name: `"qwen3-coder"`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Hermes => "hermes",
            Format::Qwen3Coder => "qwen3-coder",
            Format::Glm => "glm",
            Format::Llama3 => "llama-3",
            Format::Llama4 => "llama-4",
            Format::Mistral => "mistral",
            Format::DeepSeekV3 => "deepseek-v3",
            Format::DeepSeekV31 => "deepseek-v3-1",
            Format::DeepSeekV32 => "deepseek-v3-2",
            Format::KimiK2 => "kimi-k2",
            Format::MiniMaxM1 => "minimax-m1",
            Format::MiniMaxM2 => "minimax-m2",
            Format::Anthropic => "anthropic-xml",
            Format::Harmony => "harmony",
            Format::Granite => "granite",
            Format::Gemma => "gemma",
            Format::FencedBash => "fenced-bash",
        }
    }

    /// What a right call looks like, on one line, for the answer to one that cannot be read.
    pub const fn example(self) -> &'static str {
        match self {
            Format::Auto | Format::Hermes => {
                r#"<tool_call>{"name": "f", "arguments": {"k": "v"}}</tool_call>"#
            }
            Format::Qwen3Coder => {
                "<tool_call><function=f><parameter=k>v</parameter></function></tool_call>"
            }
            Format::Glm => "<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>",
            Format::Llama3 => r#"<|python_tag|>{"name": "f", "parameters": {"k": "v"}}"#,
            Format::Llama4 => r#"<|python_start|>[f(k="v")]<|python_end|>"#,
            Format::Mistral => r#"[TOOL_CALLS]f[ARGS]{"k": "v"}"#,
            Format::DeepSeekV3 => {
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f, then fenced JSON, then \
                 <｜tool▁call▁end｜>"
            }
            Format::DeepSeekV31 => {
                r#"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"k": "v"}<｜tool▁call▁end｜>"#
            }
            Format::DeepSeekV32 => {
                r#"<｜DSML｜invoke name="f"><｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter></｜DSML｜invoke>"#
            }
            Format::KimiK2 => {
                r#"<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"k": "v"}<|tool_call_end|>"#
            }
            Format::MiniMaxM1 => {
                r#"<tool_calls>{"name": "f", "arguments": {"k": "v"}}</tool_calls>"#
            }
            Format::MiniMaxM2 => {
                r#"<minimax:tool_call><invoke name="f"><parameter name="k">v</parameter></invoke></minimax:tool_call>"#
            }
            Format::Anthropic => {
                r#"<function_calls><invoke name="f"><parameter name="k">v</parameter></invoke></function_calls>"#
            }
            Format::Harmony => {
                r#"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"k": "v"}<|call|>"#
            }
            Format::Granite => r#"<|tool_call|>[{"name": "f", "arguments": {"k": "v"}}]"#,
            Format::Gemma => r#"a block fenced with ```tool_code that holds f(k="v")"#,
            Format::FencedBash => "exactly one block fenced with ```bash",
        }
    }

    /// Names besides [`as_str`](Self::as_str), in small letters and without punctuation.
    const fn aliases(self) -> &'static [&'static str] {
        match self {
            Format::Hermes => &["qwen", "qwen2", "qwen25", "qwen3"],
            Format::Glm => &["glm4", "glm45", "glm46", "glm47"],
            Format::Llama3 => &["llama", "llama31", "llama32", "llama33", "llama3json"],
            Format::Llama4 => &["pythonic"],
            Format::DeepSeekV3 => &["deepseek", "deepseekr1"],
            Format::DeepSeekV32 => &["dsml"],
            Format::KimiK2 => &["kimi"],
            Format::MiniMaxM2 => &["minimax"],
            Format::Anthropic => &["anthropic", "claude"],
            Format::Harmony => &["gptoss", "openaiharmony"],
            Format::Gemma => &["gemma3", "toolcode"],
            Format::FencedBash => &["bash", "fenced", "minisweagent"],
            _ => &[],
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that none of a kind has: formats, message forms, policies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {kind} is named {name:?}; there are {names}")]
#[non_exhaustive]
pub struct UnknownName {
    /// What was looked for.
    pub kind: &'static str,
    /// The name.
    pub name: String,
    /// The names there are.
    pub names: String,
}

impl UnknownName {
    pub(super) fn new(kind: &'static str, name: &str, names: &[&str]) -> Self {
        Self { kind, name: name.to_owned(), names: names.join(", ") }
    }
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let bare = |name: &str| -> String {
            let kept = name.chars().filter(|c| !matches!(c, '-' | '_' | '.' | ' '));
            kept.flat_map(char::to_lowercase).collect()
        };
        let wanted = bare(name);
        let named = |format: &Format| {
            bare(format.as_str()) == wanted || format.aliases().contains(&wanted.as_str())
        };
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| UnknownName::new("format", name, &Self::ALL.map(Self::as_str)))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_no_two_formats_share_one() {
        for format in Format::ALL {
            assert_eq!(format.as_str().parse(), Ok(format));
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(serde_json::from_str::<Format>(&json).unwrap(), format);
            for alias in format.aliases() {
                assert_eq!(alias.parse(), Ok(format), "{alias}");
            }
        }
    }

    #[test]
    fn spellings_that_people_use_are_read() {
        for (name, format) in [
            ("DeepSeek-V3.1", Format::DeepSeekV31),
            ("deepseek_v32", Format::DeepSeekV32),
            ("qwen3_coder", Format::Qwen3Coder),
            ("Qwen2.5", Format::Hermes),
            ("gpt-oss", Format::Harmony),
            ("GLM-4.5", Format::Glm),
            ("mini-swe-agent", Format::FencedBash),
        ] {
            assert_eq!(name.parse(), Ok(format), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_names_there_are() {
        let error = "yaml".parse::<Format>().unwrap_err().to_string();
        assert!(error.starts_with("no format is named \"yaml\"; there are auto, hermes, "));
        assert!(error.ends_with(", fenced-bash"), "{error}");
    }
}
