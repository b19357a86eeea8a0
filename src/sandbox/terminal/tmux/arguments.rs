//! What a `tmux` call asks for. Pure.
//!
//! Everything is held within its bounds here, by what the model may say and by the call's own
//! time; what makes no sense counts as not said. Only an action that does not exist and keys that
//! are no keys are refused.

use std::time::Duration;

use serde_json::Value;

use super::keys::Keys;
use crate::tool::python_json::is_truthy;
use crate::tool::{JsonObject, Outcome, ToolResult};

/// How many bytes of the recording one call gets, by default and at most.
const STREAM_BYTES: (usize, usize) = (50_000, 200_000);

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// 20 to 500. Defaults to 120.
    pub(super) width: u16,
    /// 10 to 200. Defaults to 40.
    pub(super) height: u16,
}

impl Size {
    /// The size in a call's arguments.
    fn from_arguments(arguments: &JsonObject) -> Self {
        let side = |name, default: u16, (least, most)| match integer(arguments, name) {
            Some(asked) => asked.clamp(least, most) as u16,
            None => default,
        };
        Self {
            width: side("pane_width", 120, (20, 500)),
            height: side("pane_height", 40, (10, 200)),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// To do something with a terminal.
    Act(Act),
    /// To have none any more.
    Stop,
}

/// What is to be done, and with what terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Act {
    /// What.
    pub(super) action: Action,
    /// The terminal's size, if there is to be a new one.
    pub(super) size: Size,
}

/// What is to be done with a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Have a terminal.
    Start,
    /// Type.
    SendKeys(SendKeys),
    /// Look at the screen.
    Capture {
        /// And at what has scrolled away.
        entire: bool,
    },
    /// Read on in the recording.
    Stream {
        /// From the beginning.
        reset: bool,
        /// How much at most: 1 to 200,000. Defaults to 50,000.
        max_bytes: usize,
    },
}

/// What to type, and what to wait for then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SendKeys {
    /// What to type.
    pub(super) keys: Keys,
    /// Whether to wait until the shell waits for a command again.
    pub(super) block: bool,
    /// The time to wait in any case. Defaults to none.
    pub(super) min_wait: Duration,
    /// The longest time to wait for the shell. Defaults to the call's time.
    pub(super) max_wait: Duration,
}

impl Request {
    /// What is in a call's arguments; the call may take `timeout`.
    ///
    /// # Errors
    /// The answer to a call that cannot be run.
    pub(crate) fn parse(
        arguments: &JsonObject,
        timeout: Duration,
    ) -> Result<Self, Box<ToolResult>> {
        let flag = |name| arguments.get(name).is_some_and(is_truthy);
        let wait = |name, default| seconds(arguments.get(name)).unwrap_or(default).min(timeout);
        let name = action_name(arguments.get("action"));
        let action = match name.as_str() {
            "start" => Action::Start,
            "send_keys" => Action::SendKeys(SendKeys {
                keys: arguments.get("keys").and_then(Keys::parse).ok_or_else(|| {
                    refusal("tmux send_keys requires 'keys' as string or list[string]".to_owned())
                })?,
                block: flag("block"),
                min_wait: wait("min_wait_s", Duration::ZERO),
                max_wait: wait("max_wait_s", timeout),
            }),
            "capture" => Action::Capture { entire: flag("capture_entire") },
            "stream" => {
                let (default, most) = STREAM_BYTES;
                let asked = integer(arguments, "max_bytes").unwrap_or(default as i64);
                let max_bytes = asked.clamp(1, most as i64) as usize;
                Action::Stream { reset: flag("reset"), max_bytes }
            }
            "stop" => return Ok(Self::Stop),
            other => return Err(refusal(format!("Unknown tmux action: {other}"))),
        };
        Ok(Self::Act(Act { action, size: Size::from_arguments(arguments) }))
    }
}

fn refusal(error: String) -> Box<ToolResult> {
    Box::new(ToolResult::failure(Outcome::InvalidCall, error))
}

/// The action's name, trimmed and in lower case.
fn action_name(action: Option<&Value>) -> String {
    let name = match action {
        Some(Value::String(name)) => name.trim().to_lowercase(),
        Some(other) if is_truthy(other) => other.to_string(),
        _ => String::new(),
    };
    if name.is_empty() { "capture".to_owned() } else { name.chars().take(100).collect() }
}

/// A whole number, or what stands for one.
fn integer(arguments: &JsonObject, name: &str) -> Option<i64> {
    match arguments.get(name)? {
        Value::Number(number) => {
            number.as_i64().or_else(|| number.as_f64().map(|float| float as i64))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A time in seconds, 0 or more; what is no time at all is `None`.
fn seconds(value: Option<&Value>) -> Option<Duration> {
    let seconds = match value? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    if seconds.is_nan() {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn parse(arguments: Value) -> Result<Request, Box<ToolResult>> {
        Request::parse(arguments.as_object().unwrap(), TIMEOUT)
    }

    fn action(arguments: Value) -> Action {
        match parse(arguments).unwrap() {
            Request::Act(act) => act.action,
            Request::Stop => panic!("a stop"),
        }
    }

    fn size(arguments: Value) -> (u16, u16) {
        match parse(arguments).unwrap() {
            Request::Act(act) => (act.size.width, act.size.height),
            Request::Stop => panic!("a stop"),
        }
    }

    fn waits(arguments: Value) -> (Duration, Duration) {
        let mut all = json!({"action": "send_keys", "keys": "x"});
        all.as_object_mut().unwrap().extend(arguments.as_object().unwrap().clone());
        match action(all) {
            Action::SendKeys(SendKeys { min_wait, max_wait, .. }) => (min_wait, max_wait),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_action_is_found_by_its_name_and_capture_is_the_default() {
        let capture = Action::Capture { entire: false };
        for name in
            [json!(null), json!(""), json!("  "), json!("capture"), json!(" CAPTURE\n"), json!(0)]
        {
            assert_eq!(action(json!({"action": name})), capture, "{name}");
        }
        assert_eq!(action(json!({})), capture);
        assert_eq!(action(json!({"capture_entire": 1})), Action::Capture { entire: true });
        assert_eq!(action(json!({"action": "Start"})), Action::Start);
        assert_eq!(parse(json!({"action": " Stop"})).unwrap(), Request::Stop);
        for (name, told) in
            [(json!("Bogus "), "bogus"), (json!(5), "5"), (json!("send keys"), "send keys")]
        {
            let refusal = parse(json!({"action": name})).unwrap_err();
            assert_eq!(refusal.error, format!("Unknown tmux action: {told}"));
            assert_eq!((refusal.outcome, refusal.may_have_executed), (Outcome::InvalidCall, false));
            assert!(refusal.metadata.is_empty());
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for keys in [json!(null), json!(1), json!({}), json!([1])] {
            let refusal = parse(json!({"action": "send_keys", "keys": keys})).unwrap_err();
            assert_eq!(refusal.error, "tmux send_keys requires 'keys' as string or list[string]");
        }
        assert!(parse(json!({"action": "send_keys"})).is_err());
        assert!(parse(json!({"action": "send_keys", "keys": []})).is_ok());
        assert!(parse(json!({"action": "capture", "keys": 1})).is_ok(), "not its business");
    }

    #[test]
    fn waits_are_held_within_the_calls_time() {
        let seconds = Duration::from_secs_f64;
        assert_eq!(waits(json!({})), (Duration::ZERO, TIMEOUT));
        assert_eq!(
            waits(json!({"min_wait_s": 0.5, "max_wait_s": "2"})),
            (seconds(0.5), seconds(2.0))
        );
        assert_eq!(waits(json!({"min_wait_s": 1e300, "max_wait_s": 31})), (TIMEOUT, TIMEOUT));
        assert_eq!(
            waits(json!({"min_wait_s": -5, "max_wait_s": -1e300})),
            (Duration::ZERO, Duration::ZERO)
        );
        for nothing in [json!(null), json!("x"), json!("NaN"), json!([1]), json!(true)] {
            let asked = json!({"min_wait_s": nothing, "max_wait_s": nothing});
            assert_eq!(waits(asked), (Duration::ZERO, TIMEOUT), "{nothing}");
        }
        assert_eq!(waits(json!({"min_wait_s": "inf"})).0, TIMEOUT);
    }

    #[test]
    fn sizes_are_held_within_their_bounds() {
        let size =
            |width: Value, height: Value| size(json!({"pane_width": width, "pane_height": height}));
        assert_eq!(size(json!(null), json!("x")), (120, 40));
        assert_eq!(size(json!(80), json!("24")), (80, 24));
        assert_eq!(size(json!(1), json!(-1)), (20, 10));
        assert_eq!(size(json!(501), json!(u64::MAX)), (500, 200));
        assert_eq!(size(json!(99.9), json!(1e300)), (99, 200));
    }

    #[test]
    fn a_stream_has_bounds() {
        let max = |asked: Value| match action(json!({"action": "stream", "max_bytes": asked})) {
            Action::Stream { max_bytes, reset: false } => max_bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(max(json!(null)), 50_000);
        assert_eq!((max(json!(0)), max(json!(7)), max(json!(300_000))), (1, 7, 200_000));
        let reset = action(json!({"action": "stream", "reset": "yes"}));
        assert_eq!(reset, Action::Stream { reset: true, max_bytes: 50_000 });
    }

    proptest! {
        #[test]
        fn no_number_escapes_its_bounds(number in any::<f64>(), whole in any::<i64>()) {
            for number in [json!(number), json!(whole), json!(number.to_string()), json!(whole.to_string())] {
                let (min, max) = waits(json!({"min_wait_s": number, "max_wait_s": number}));
                prop_assert!(min <= TIMEOUT && max <= TIMEOUT);
                let (width, height) = size(json!({"pane_width": number, "pane_height": number}));
                prop_assert!((20..=500).contains(&width) && (10..=200).contains(&height));
            }
        }
    }
}
