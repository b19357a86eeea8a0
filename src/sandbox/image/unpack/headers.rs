//! What is in the headers of a tar: numbers, names, pax records, maps of sparse files. Pure.

use super::{LayerError, shown};

pub(super) const BLOCK: usize = 512;

/// How many parts a sparse file may have: what its map takes is held in memory.
const MAX_PARTS: usize = 1 << 16;

/// A header block, whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// # Errors
    /// The checksum is another one: it is no header.
    pub(super) fn read(block: &'a [u8; BLOCK]) -> Result<Self, LayerError> {
        let header = Self(block);
        let sum = |byte: fn(u8) -> i64| {
            let counted = block.iter().enumerate();
            let blanked = counted.map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
            blanked.map(byte).sum::<i64>()
        };
        let said = number(&block[148..156]);
        // Some old programs add signed bytes.
        let signed = |byte: u8| i64::from(byte.cast_signed());
        match said == Some(sum(i64::from)) || said == Some(sum(signed)) {
            true => Ok(header),
            false => Err(LayerError::invalid("a layer is no tar archive, or damaged")),
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that some formats have.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match (&self.0[257..263], &self.0[508..512]) {
            (b"ustar\0", b"tar\0") => self.text(345..476),
            (b"ustar\0", _) => self.text(345..500),
            _ => &[],
        };
        match prefix {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    pub(super) fn mode(&self) -> Result<i64, LayerError> {
        self.number(100..108, "mode")
    }

    pub(super) fn uid(&self) -> Result<i64, LayerError> {
        self.number(108..116, "user")
    }

    pub(super) fn gid(&self) -> Result<i64, LayerError> {
        self.number(116..124, "group")
    }

    pub(super) fn size(&self) -> Result<u64, LayerError> {
        let size = self.number(124..136, "size")?;
        u64::try_from(size).map_err(|_| self.wrong("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, LayerError> {
        self.number(136..148, "time")
    }

    /// The size with holes, the parts of a sparse file in GNU's old format, and whether more blocks
    /// with parts follow.
    pub(super) fn old_sparse(&self) -> Result<(u64, Vec<Part>, bool), LayerError> {
        let size = u64::try_from(self.number(483..495, "size")?).map_err(|_| self.wrong("size"))?;
        let mut parts = Vec::new();
        let more = old_parts(&self.0[386..483], &mut parts)?;
        Ok((size, parts, more))
    }

    fn text(&self, field: std::ops::Range<usize>) -> &'a [u8] {
        let field = &self.0[field];
        &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
    }

    fn number(&self, field: std::ops::Range<usize>, what: &str) -> Result<i64, LayerError> {
        number(&self.0[field]).ok_or_else(|| self.wrong(what))
    }

    fn wrong(&self, what: &str) -> LayerError {
        LayerError::invalid(format!("the {what} of {} cannot be read", shown(&self.name())))
    }
}

/// A number as headers have it: octal digits, or with the highest bit set the bytes of the number.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // The second highest bit is the sign.
        let first = i128::from((field[0] << 1).cast_signed() >> 1);
        let bytes = field[1..].iter();
        let value = bytes.fold(first, |value, &byte| (value << 8) | i128::from(byte));
        return i64::try_from(value).ok();
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    let text = text.split('\0').next().unwrap_or(text).trim();
    match text {
        "" => Some(0),
        _ if text.starts_with(['+', '-']) => None,
        _ => i64::from_str_radix(text, 8).ok(),
    }
}

/// A part of a sparse file that is in the archive: where it is, and how long.
pub(super) type Part = (u64, u64);

/// Reads parts of 24 bytes, and the byte behind them: whether there are more.
pub(super) fn old_parts(field: &[u8], parts: &mut Vec<Part>) -> Result<bool, LayerError> {
    let (list, more) = field.split_at(field.len() - 1);
    for part in list.chunks_exact(24) {
        if part[0] == 0 {
            break;
        }
        let read = |half: &[u8]| number(half).and_then(|number| u64::try_from(number).ok());
        match (read(&part[..12]), read(&part[12..])) {
            (Some(at), Some(length)) => add_part(parts, (at, length))?,
            _ => return Err(bad_map()),
        }
    }
    Ok(more[0] != 0)
}

fn add_part(parts: &mut Vec<Part>, part: Part) -> Result<(), LayerError> {
    if parts.len() == MAX_PARTS {
        let what = "a sparse file has too many parts".to_owned();
        return Err(LayerError::TooLarge { what, most: MAX_PARTS as u64 });
    }
    parts.push(part);
    Ok(())
}

fn bad_map() -> LayerError {
    LayerError::invalid("the map of a sparse file cannot be read")
}

/// Whether the parts are in order, do not overlap, lie in a file of this size, and are as long as
/// what the archive has of it.
pub(super) fn check_parts(parts: &[Part], size: u64, stored: u64) -> Result<(), LayerError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for &(at, length) in parts {
        let next = at.checked_add(length).filter(|&next| at >= end && next <= size);
        end = next.ok_or_else(bad_map)?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(bad_map()) }
}

/// What pax records say of an entry. Those of other things are ignored, as others ignore them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The parts that the records list.
    pub(super) parts: Option<Vec<Part>>,
    /// The size with holes.
    pub(super) sparse_size: Option<u64>,
    /// The map is at the beginning of the data.
    pub(super) map_in_data: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Reads records: `LENGTH KEY=VALUE\n`, one after the other.
    pub(super) fn read(mut records: &[u8]) -> Result<Self, LayerError> {
        let bad = || LayerError::invalid("a pax header cannot be read");
        let mut pax = Self::default();
        let mut sparse_name = None;
        // A part of which only the first half was read.
        let mut open_part = None;
        while !records.is_empty() {
            let blank = records.iter().take(21).position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length = decimal(&records[..blank]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|&length| length > blank + 2 && length <= records.len());
            let (record, rest) = records.split_at(length.ok_or_else(bad)?);
            records = rest;
            let record = record[blank + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if let Some(name) = key.strip_prefix(XATTR) {
                pax.xattrs.push((name.to_vec(), value.to_vec()));
                continue;
            }
            match key {
                b"path" | b"linkpath" | b"GNU.sparse.name" if value.contains(&0) => {
                    return Err(bad());
                }
                // An empty value takes the record back.
                b"path" => pax.path = Some(value.to_vec()).filter(|path| !path.is_empty()),
                b"linkpath" => pax.link = Some(value.to_vec()).filter(|link| !link.is_empty()),
                b"size" => pax.size = Some(decimal(value).ok_or_else(bad)?),
                b"uid" | b"gid" => {
                    let id = decimal(value).and_then(|id| i64::try_from(id).ok());
                    let id = Some(id.ok_or_else(bad)?);
                    *if key == b"uid" { &mut pax.uid } else { &mut pax.gid } = id;
                }
                b"mtime" => pax.mtime = Some(time(value).ok_or_else(bad)?),
                b"GNU.sparse.name" => sparse_name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                    pax.sparse_size = Some(decimal(value).ok_or_else(bad)?);
                }
                b"GNU.sparse.major" => pax.map_in_data = value == b"1",
                b"GNU.sparse.numblocks" => _ = pax.parts.get_or_insert_default(),
                b"GNU.sparse.offset" => open_part = Some(decimal(value).ok_or_else(bad_map)?),
                b"GNU.sparse.numbytes" => {
                    let part = open_part.take().zip(decimal(value)).ok_or_else(bad_map)?;
                    add_part(pax.parts.get_or_insert_default(), part)?;
                }
                b"GNU.sparse.map" => {
                    let parts = pax.parts.insert(Vec::new());
                    let numbers: Vec<_> = match value {
                        [] => Vec::new(),
                        value => value.split(|&byte| byte == b',').map(decimal).collect(),
                    };
                    for pair in numbers.chunks(2) {
                        match *pair {
                            [Some(at), Some(length)] => add_part(parts, (at, length))?,
                            _ => return Err(bad_map()),
                        }
                    }
                }
                _ => {}
            }
        }
        // The name that is in the header is made up for programs that know no sparse files.
        pax.path = sparse_name.or(pax.path);
        Ok(pax)
    }

    /// Whether it is of a sparse file.
    pub(super) fn is_sparse(&self) -> bool {
        self.map_in_data || self.parts.is_some()
    }
}

/// A number without sign.
fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// Seconds, with a sign and a fraction if need be.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (negative, digits) = match whole.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, whole),
    };
    let seconds = i64::try_from(decimal(digits.as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// Reads the map that a sparse file's data begins with: decimal numbers, a line each, in blocks.
pub(super) struct DataMap {
    wanted: Option<u64>,
    first: Option<u64>,
    digits: Vec<u8>,
    parts: Vec<Part>,
}

impl DataMap {
    pub(super) fn new() -> Self {
        Self { wanted: None, first: None, digits: Vec::new(), parts: Vec::new() }
    }

    /// Takes a block; the parts once the map is whole, and whatever follows in the block is
    /// padding.
    pub(super) fn take(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Part>>, LayerError> {
        for &byte in block {
            if byte != b'\n' {
                if self.digits.len() > 20 {
                    return Err(bad_map());
                }
                self.digits.push(byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or_else(bad_map)?;
            self.digits.clear();
            if self.wanted.is_none() {
                self.wanted = Some(number);
            } else if let Some(at) = self.first.take() {
                add_part(&mut self.parts, (at, number))?;
            } else {
                self.first = Some(number);
            }
            if self.wanted == Some(self.parts.len() as u64) {
                return Ok(Some(std::mem::take(&mut self.parts)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        for bad in
            [&b"9"[..], b"-1", b"+1", b"0x1", b"1 2", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn pax_records_are_read_and_damaged_ones_refused() {
        let records = [
            b"9 path=a\n".as_slice(),
            b"12 size=123\n",
            b"14 mtime=-1.5\n",
            b"9 uid=10\n",
            b"13 comment=x\n",
            b"28 SCHILY.xattr.user.a=x\0\ny\n",
        ];
        let pax = Pax::read(&records.concat()).unwrap();
        let expected = Pax {
            path: Some(b"a".to_vec()),
            size: Some(123),
            uid: Some(10),
            mtime: Some((-2, 500_000_000)),
            xattrs: vec![(b"user.a".to_vec(), b"x\0\ny".to_vec())],
            ..Pax::default()
        };
        assert_eq!(pax, expected);
        for bad in [
            &b"9 path=a"[..],
            b"11 path=a\n",
            b"8 path=a\n",
            b"99999999999999999999999 path=a\n",
            b"0 \n",
            b"3 \n",
            b"-9 path=a\n",
            b"11 size=-1\n",
            b"10 path=\0a\n",
            b"6 abc\n",
            b"26 GNU.sparse.numbytes=12\n",
            b"22 GNU.sparse.map=1,2,3\n",
        ] {
            assert!(Pax::read(bad).is_err(), "{}", bad.escape_ascii());
        }
        let lists = b"24 GNU.sparse.map=1,2,5,9\n23 GNU.sparse.name=real\n10 path=x\n";
        assert!(Pax::read(lists).is_err());
        let map = Pax::read(b"26 GNU.sparse.map=1,2,5,9\n24 GNU.sparse.name=real\n9 path=x\n");
        let map = map.unwrap();
        assert_eq!((map.parts, map.path), (Some(vec![(1, 2), (5, 9)]), Some(b"real".to_vec())));
    }

    #[test]
    fn maps_of_sparse_files_are_in_order_and_in_the_file() {
        assert!(check_parts(&[(0, 2), (4, 2), (9, 0)], 9, 4).is_ok());
        for (parts, size, stored) in [
            (&[(0, 2), (1, 2)][..], 9, 4),
            (&[(0, 2), (4, 6)], 9, 8),
            (&[(0, 2)], 9, 3),
            (&[(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert!(check_parts(parts, size, stored).is_err(), "{parts:?}");
        }
        let mut block = [0; BLOCK];
        block[..12].copy_from_slice(b"2\n0\n1\n100\n5\n"[..12].try_into().unwrap_or(&[0; 12]));
        let mut map = DataMap::new();
        block[..12].copy_from_slice(b"2\n0\n1\n10\n5\n\0");
        assert_eq!(map.take(&block).unwrap(), Some(vec![(0, 1), (10, 5)]));
        block[..12].copy_from_slice(b"2\n0\n1\n1x\n5\n\0");
        assert!(DataMap::new().take(&block).is_err());
    }
}
