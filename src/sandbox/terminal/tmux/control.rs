//! The lines that tmux writes in its control mode (`tmux -C`), parsed. Pure.
//!
//! Three kinds of lines: *notifications*, which begin with `%`; *replies*, one for each command,
//! which are whatever stands between a `%begin` and the `%end` or `%error` that bears the same
//! three words; and the pane's output, which is a notification with the bytes in octal.
//!
//! Whoever writes them is not to be trusted: the model can stop, replace and talk to its tmux. So
//! nothing here is taken on faith: a line has a longest length, numbers are digits, and a line
//! that cannot be is [`Broken`], which ends the session. Of a reply nothing is kept here.
//!
//! A reply can hold a line that looks like its own end: a screen may show anything. Where that is
//! possible the caller knows how many lines there are, and says so ([`Parser::expect_lines`]).

use std::fmt;

/// No line that tmux writes is longer. The longest are the widest lines of a screen, each cell
/// with as many combining characters as tmux keeps.
pub(super) const LONGEST_LINE: usize = 512 * 1024;
/// What is kept allocated between lines, in bytes.
const USUAL_BUFFER: usize = 64 * 1024;
/// The words of a `%begin` are numbers: nothing longer.
const LONGEST_GUARD: usize = 80;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A reply begins: to a command of ours, or to one that somebody else gave.
    Begin {
        /// Whether it is to a command that was written to this client's standard input.
        ours: bool,
    },
    /// A line of a reply.
    Line(&'a [u8]),
    /// The reply is over.
    End {
        /// Whether the command did what it was told to.
        ok: bool,
    },
    /// A pane printed this.
    Output {
        /// The pane's number.
        pane: u32,
        /// What it printed, cut anywhere.
        bytes: &'a [u8],
    },
    /// tmux lets go of us, and says why, perhaps.
    Exit(&'a [u8]),
    /// Something else happened, which is of no interest here.
    Other,
}

/// A line that tmux does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is longer than any line.
    LineTooLong,
    /// It is no notification, and outside a reply.
    NoNotification,
    /// A notification that begins right, and goes on wrong.
    Malformed,
    /// After the lines that were expected the reply did not end.
    UnexpectedLine,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LineTooLong => "it wrote a line without an end",
            Self::NoNotification => "it wrote a line that is no notification",
            Self::Malformed => "it wrote a malformed notification",
            Self::UnexpectedLine => "a reply has more lines than it should",
        })
    }
}

/// Cuts a stream into lines, and tells what they say.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What was pushed; dealt with up to `done`.
    buffer: Vec<u8>,
    done: usize,
    /// Up to here there is no line end after `done`.
    searched: usize,
    /// The words of the `%begin` of the reply that is open.
    open: Option<Vec<u8>>,
    /// Lines of the reply that are still to come, whatever they look like.
    expected: Option<usize>,
    /// The bytes of the latest [`Event::Output`].
    decoded: Vec<u8>,
}

impl Parser {
    /// Takes the next bytes of the stream. Keeps them until [`next`](Self::next) has dealt with
    /// them, which is to be called until it gives `None`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done);
        self.searched -= self.done;
        self.done = 0;
        if self.buffer.is_empty() {
            // There may have been a long line.
            self.buffer.shrink_to(USUAL_BUFFER);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next reply has exactly so many lines. To be called between two replies.
    pub(super) fn expect_lines(&mut self, lines: usize) {
        self.expected = Some(lines);
    }

    /// What the next line says; `None` until there is another whole line.
    ///
    /// # Errors
    /// [`Broken`]; what follows cannot be understood then.
    pub(super) fn next(&mut self) -> Result<Option<Event<'_>>, Broken> {
        let end = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.buffer.len();
            return match self.searched - self.done > LONGEST_LINE {
                true => Err(Broken::LineTooLong),
                false => Ok(None),
            };
        };
        let line = &self.buffer[self.done..end];
        if line.len() > LONGEST_LINE {
            return Err(Broken::LineTooLong);
        }
        (self.done, self.searched) = (end + 1, end + 1);
        if let Some(open) = &self.open {
            if let Some(expected @ 1..) = &mut self.expected {
                *expected -= 1;
                return Ok(Some(Event::Line(line)));
            }
            let end = match split_word(line) {
                (b"%end", guard) if guard == open => Some(true),
                (b"%error", guard) if guard == open => Some(false),
                _ => None,
            };
            return match (end, self.expected) {
                (Some(ok), _) => {
                    (self.open, self.expected) = (None, None);
                    Ok(Some(Event::End { ok }))
                }
                (None, Some(_)) => Err(Broken::UnexpectedLine),
                (None, None) => Ok(Some(Event::Line(line))),
            };
        }
        match split_word(line) {
            (b"%begin", guard) => {
                let ours = guard_flags(guard).ok_or(Broken::Malformed)? & 1 == 1;
                self.open = Some(guard.to_vec());
                Ok(Some(Event::Begin { ours }))
            }
            (b"%output", rest) => {
                let (pane, bytes) = split_word(rest);
                let pane = pane_number(pane).ok_or(Broken::Malformed)?;
                unescape(bytes, &mut self.decoded)?;
                Ok(Some(Event::Output { pane, bytes: &self.decoded }))
            }
            (b"%extended-output", rest) => {
                // `%3 120 : text`; there may be more words before the colon one day.
                let (pane, rest) = split_word(rest);
                let pane = pane_number(pane).ok_or(Broken::Malformed)?;
                let colon = rest.windows(3).position(|three| three == b" : ");
                let colon = colon.ok_or(Broken::Malformed)?;
                unescape(&rest[colon + 3..], &mut self.decoded)?;
                Ok(Some(Event::Output { pane, bytes: &self.decoded }))
            }
            (b"%exit", why) => Ok(Some(Event::Exit(why))),
            (b"%end" | b"%error", _) => Err(Broken::Malformed),
            (name, _) if is_notification(name) => Ok(Some(Event::Other)),
            _ => Err(Broken::NoNotification),
        }
    }

    /// How much is kept of the stream just now, in bytes.
    #[cfg(test)]
    fn kept(&self) -> usize {
        self.buffer.len() + self.open.as_ref().map_or(0, Vec::len)
    }
}

/// A line's first word, and what follows the space after it.
fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&byte| byte == b' ') {
        Some(space) => (&line[..space], &line[space + 1..]),
        None => (line, b""),
    }
}

/// The third number of a `%begin`: flags, of which the lowest says that the command is ours.
fn guard_flags(guard: &[u8]) -> Option<u64> {
    let guard = std::str::from_utf8(guard).ok().filter(|guard| guard.len() <= LONGEST_GUARD)?;
    let mut words = guard.split(' ').map(number);
    let (_time, _number, flags) = (words.next()??, words.next()??, words.next()??);
    words.next().is_none().then_some(flags)
}

fn pane_number(word: &[u8]) -> Option<u32> {
    let word = std::str::from_utf8(word).ok()?.strip_prefix('%')?;
    number(word)?.try_into().ok()
}

/// Digits only: no sign, no space.
fn number(word: &str) -> Option<u64> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten()
}

fn is_notification(name: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'-';
    matches!(name, [b'%', rest @ ..] if !rest.is_empty() && rest.len() <= 40 && rest.iter().all(letter))
}

/// Puts into `decoded` what `escaped` stands for: control characters and backslashes are written
/// as a backslash and three octal digits.
fn unescape(escaped: &[u8], decoded: &mut Vec<u8>) -> Result<(), Broken> {
    decoded.clear();
    let mut rest = escaped;
    while let Some(backslash) = rest.iter().position(|&byte| byte == b'\\') {
        decoded.extend_from_slice(&rest[..backslash]);
        let digits = rest.get(backslash + 1..backslash + 4).ok_or(Broken::Malformed)?;
        let octal = |value: u32, &digit: &u8| match digit {
            b'0'..=b'7' => Some(value * 8 + u32::from(digit - b'0')),
            _ => None,
        };
        let value = digits.iter().try_fold(0, octal).and_then(|value| value.try_into().ok());
        decoded.push(value.ok_or(Broken::Malformed)?);
        rest = &rest[backslash + 4..];
    }
    decoded.extend_from_slice(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every event of a stream, as text, until it is broken.
    fn events(parser: &mut Parser, stream: &[u8]) -> (Vec<String>, Option<Broken>) {
        parser.push(stream);
        let mut events = Vec::new();
        loop {
            match parser.next() {
                Ok(Some(event)) => events.push(match event {
                    Event::Line(line) => format!("line {}", line.escape_ascii()),
                    Event::Output { pane, bytes } => format!("{pane} {}", bytes.escape_ascii()),
                    Event::Exit(why) => format!("exit {}", why.escape_ascii()),
                    other => format!("{other:?}"),
                }),
                Ok(None) => return (events, None),
                Err(broken) => return (events, Some(broken)),
            }
        }
    }

    fn all(stream: &[u8]) -> (Vec<String>, Option<Broken>) {
        events(&mut Parser::default(), stream)
    }

    #[test]
    fn a_real_session_is_understood() {
        let stream = b"%begin 1795601851 260 0\n%end 1795601851 260 0\n%window-add @0\n\
            %session-changed $0 s\n%output %0 \\033[?2004h\xc3\xa9\\134\n\
            %begin 1795601852 269 1\n0 30\n%end 1795601852 269 1\n\
            %begin 1795601852 270 1\nparse error: unknown command: foo\n%error 1795601852 270 1\n\
            %extended-output %12 250 : a : b\n%exit\n";
        let (events, broken) = all(stream);
        let expected = [
            "Begin { ours: false }",
            "End { ok: true }",
            "Other",
            "Other",
            r"0 \x1b[?2004h\xc3\xa9\\",
            "Begin { ours: true }",
            "line 0 30",
            "End { ok: true }",
            "Begin { ours: true }",
            "line parse error: unknown command: foo",
            "End { ok: false }",
            "12 a : b",
            "exit ",
        ];
        assert_eq!((events, broken), (expected.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn within_a_reply_only_its_own_end_ends_it() {
        let (events, broken) =
            all(b"%begin 1 2 1\n%output %0 x\n%end 1 3 1\n%end 1 2 1 \n%exit\n%end 1 2 1\n");
        assert_eq!(broken, None);
        assert_eq!(
            events[1..5],
            ["line %output %0 x", "line %end 1 3 1", "line %end 1 2 1 ", "line %exit"]
        );
        assert_eq!(events[5..], ["End { ok: true }"]);
    }

    #[test]
    fn expected_lines_are_lines_whatever_they_look_like() {
        let mut parser = Parser::default();
        parser.expect_lines(2);
        let reply =
            b"%begin 1 2 1\n%end 1 2 1\n%error 1 2 1\n%end 1 2 1\n%begin 1 3 1\n%end 1 3 1\n";
        let (told, broken) = events(&mut parser, reply);
        assert_eq!(broken, None);
        assert_eq!(told[1..4], ["line %end 1 2 1", "line %error 1 2 1", "End { ok: true }"]);
        assert_eq!(told[4..], ["Begin { ours: true }", "End { ok: true }"], "only the next reply");

        let mut parser = Parser::default();
        parser.expect_lines(1);
        let reply = b"%begin 1 2 1\na\nb\n";
        assert_eq!(events(&mut parser, reply).1, Some(Broken::UnexpectedLine));
    }

    #[test]
    fn what_tmux_does_not_write_is_broken() {
        for (line, broken) in [
            (&b"hello\n"[..], Broken::NoNotification),
            (b"\n", Broken::NoNotification),
            (b"%\n", Broken::NoNotification),
            (b"%Output %0 a\n", Broken::NoNotification),
            (b"%output\n", Broken::Malformed),
            (b"%output 0 a\n", Broken::Malformed),
            (b"%output %-1 a\n", Broken::Malformed),
            (b"%output %99999999999 a\n", Broken::Malformed),
            (b"%output %0 \\8\n", Broken::Malformed),
            (b"%output %0 \\12\n", Broken::Malformed),
            (b"%output %0 \\400\n", Broken::Malformed),
            (b"%output %0 \\999\n", Broken::Malformed),
            (b"%extended-output %0 1 a\n", Broken::Malformed),
            (b"%begin\n", Broken::Malformed),
            (b"%begin 1 2\n", Broken::Malformed),
            (b"%begin 1 2 3 4\n", Broken::Malformed),
            (b"%begin 1 2 +1\n", Broken::Malformed),
            (b"%begin 1 2 99999999999999999999999\n", Broken::Malformed),
            (b"%end 1 2 1\n", Broken::Malformed),
            (b"%error 1 2 1\n", Broken::Malformed),
        ] {
            assert_eq!(all(line), (Vec::new(), Some(broken)), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..LONGEST_LINE / chunk.len() {
            assert_eq!(events(&mut parser, &chunk), (Vec::new(), None));
        }
        assert_eq!(events(&mut parser, &chunk).1, Some(Broken::LineTooLong));
        let in_one = [&vec![b'x'; LONGEST_LINE + 1][..], b"\n"].concat();
        assert_eq!(all(&in_one).1, Some(Broken::LineTooLong));
    }

    /// What tmux makes of a pane's output.
    fn escape(bytes: &[u8]) -> Vec<u8> {
        let escaped = |&byte: &u8| match byte {
            0..b' ' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![byte],
        };
        bytes.iter().flat_map(escaped).collect()
    }

    /// Lines that are nearly right, and garbage.
    fn fragments() -> impl Strategy<Value = Vec<u8>> {
        let fragment = prop_oneof![
            Just(b"%begin 1 2 1\n".to_vec()),
            Just(b"%end 1 2 1\n".to_vec()),
            Just(b"%error 1 2 1\n".to_vec()),
            Just(b"%output %0 a\\012\n".to_vec()),
            Just(b"%output %".to_vec()),
            Just(b"%extended-output %0 1 : a\n".to_vec()),
            Just(b"%exit\n".to_vec()),
            Just(b"%window-add @1\n".to_vec()),
            Just(b"\\".to_vec()),
            Just(b"\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat())
    }

    proptest! {
        #[test]
        fn output_comes_out_as_it_went_in(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let line = [b"%output %7 ", &escape(&bytes)[..], b"\n"].concat();
            let mut parser = Parser::default();
            parser.push(&line);
            prop_assert_eq!(parser.next(), Ok(Some(Event::Output { pane: 7, bytes: &bytes })));
        }

        #[test]
        fn it_matters_not_where_the_stream_is_cut(
            stream in fragments(),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let whole = all(&stream);
            let (mut told, mut parser, mut rest) = (Vec::new(), Parser::default(), &stream[..]);
            let mut broken = None;
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                let (events, end) = events(&mut parser, now);
                told.extend(events);
                prop_assert!(parser.kept() <= stream.len() + 100);
                (broken, rest) = (end, later);
                if broken.is_some() || rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!((told, broken), whole);
        }

        #[test]
        fn garbage_is_told_in_fewer_events_than_it_has_lines(
            stream in fragments(),
            expected in proptest::option::of(0usize..5),
        ) {
            let mut parser = Parser::default();
            if let Some(expected) = expected {
                parser.expect_lines(expected);
            }
            let lines = stream.iter().filter(|&&byte| byte == b'\n').count();
            let (told, broken) = events(&mut parser, &stream);
            prop_assert!(told.len() + usize::from(broken.is_some()) <= lines);
        }
    }
}
