//! Layers of any kind, unpacked one above the other and looked at as an overlay does, against a
//! naive model: one tree in memory, to which each layer is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::EntryType;

use super::{Fixture, Tar};

type Names = Vec<String>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(String),
    Link(String),
}

#[derive(Debug, Clone)]
enum Op {
    Directory(Names, u32),
    File(Names),
    Link(Names, &'static str),
    Hard(Names, Names),
    Whiteout(Names),
    Opaque(Names),
}

fn names(most: usize) -> impl Strategy<Value = Names> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned);
    prop::collection::vec(name, 1..=most)
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![Just(0o755), Just(0o700), Just(0o711)];
    let target = prop_oneof![
        Just("a"),
        Just("/b"),
        Just("../c"),
        Just("b/c"),
        Just("."),
        Just("/"),
        Just("../../a/b")
    ];
    prop_oneof![
        4 => (names(3), mode).prop_map(|(names, mode)| Op::Directory(names, mode)),
        4 => names(3).prop_map(Op::File),
        1 => (names(3), target).prop_map(|(names, target)| Op::Link(names, target)),
        1 => (names(3), names(3)).prop_map(|(names, to)| Op::Hard(names, to)),
        3 => names(3).prop_map(Op::Whiteout),
        1 => names(2).prop_map(Op::Opaque),
    ]
}

/// The image so far, and what the layer that is being applied has of it.
#[derive(Debug, Default, Clone)]
struct Model {
    nodes: BTreeMap<Names, Node>,
    own: BTreeSet<Names>,
}

impl Model {
    /// The names of a directory without links; `Err` where a layer with such an entry is refused.
    fn resolve(&self, names: &[String]) -> Result<Names, ()> {
        let mut todo: Vec<String> = names.iter().rev().cloned().collect();
        let (mut done, mut links) = (Names::new(), 0);
        while let Some(name) = todo.pop() {
            match &name[..] {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            match self.nodes.get(&done) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(());
                    }
                    match target.starts_with('/') {
                        true => done.clear(),
                        false => drop(done.pop()),
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                }
                // One of the layers below gives way.
                Some(Node::File(_)) if self.own.contains(&done) => return Err(()),
                _ => {}
            }
        }
        Ok(done)
    }

    fn remove(&mut self, names: &Names) {
        self.nodes.retain(|path, _| !path.starts_with(names));
        self.own.retain(|path| !path.starts_with(names));
    }

    /// Removes what is below a directory and not of the layer itself.
    fn hide(&mut self, names: &Names) {
        let own = &self.own;
        self.nodes
            .retain(|path, _| path == names || !path.starts_with(names) || own.contains(path));
    }

    fn make(&mut self, names: &[String]) {
        for length in 1..=names.len() {
            let path = names[..length].to_vec();
            if !matches!(self.nodes.get(&path), Some(Node::Directory(_))) {
                self.remove(&path);
                self.nodes.insert(path.clone(), Node::Directory(0o755));
            }
            self.own.insert(path);
        }
    }

    /// Where an entry is, with the directories above it made.
    fn place(&mut self, names: &Names) -> Result<Names, ()> {
        let (last, parents) = names.split_last().unwrap();
        let mut path = self.resolve(parents)?;
        self.make(&path);
        path.push(last.clone());
        Ok(path)
    }

    fn apply(&mut self, op: &Op, text: &str) -> Result<(), ()> {
        let put = |model: &mut Self, names: &Names, node| {
            let path = model.place(names)?;
            model.remove(&path);
            model.own.insert(path.clone());
            model.nodes.insert(path, node);
            Ok(())
        };
        match op {
            Op::File(names) => put(self, names, Node::File(text.to_owned())),
            Op::Link(names, target) => put(self, names, Node::Link((*target).to_owned())),
            Op::Directory(names, mode) => {
                let path = self.place(names)?;
                if !matches!(self.nodes.get(&path), Some(Node::Directory(_))) {
                    self.remove(&path);
                }
                self.own.insert(path.clone());
                self.nodes.insert(path, Node::Directory(*mode));
                Ok(())
            }
            Op::Hard(names, to) => {
                let (last, parents) = to.split_last().unwrap();
                let mut target = self.resolve(parents)?;
                target.push(last.clone());
                let node = self.nodes.get(&target).filter(|_| self.own.contains(&target));
                let node = node.cloned().ok_or(())?;
                if matches!(node, Node::Directory(_)) {
                    return Err(());
                }
                let path = self.place(names)?;
                if path == target {
                    return Ok(());
                }
                self.remove(&path);
                if !self.nodes.contains_key(&target) {
                    // It was in what gave way.
                    return Err(());
                }
                self.own.insert(path.clone());
                self.nodes.insert(path, node);
                Ok(())
            }
            Op::Whiteout(names) => {
                let (last, parents) = names.split_last().unwrap();
                let mut path = self.resolve(parents)?;
                path.push(last.clone());
                match self.nodes.get(&path) {
                    None => {}
                    Some(_) if self.own.contains(&path) => self.hide(&path),
                    Some(_) => {
                        let parents = path[..path.len() - 1].to_vec();
                        self.remove(&path);
                        self.make(&parents);
                    }
                }
                Ok(())
            }
            Op::Opaque(names) => {
                let path = self.resolve(names)?;
                if path.is_empty() {
                    let own = &self.own;
                    self.nodes.retain(|path, _| own.contains(path));
                } else if matches!(self.nodes.get(&path), Some(Node::Directory(_))) {
                    self.make(&path);
                    self.hide(&path);
                }
                Ok(())
            }
        }
    }
}

fn written(op: &Op, tar: Tar, text: &str) -> Tar {
    match op {
        Op::Directory(names, mode) => {
            let set: fn(&mut tar::Header) = match mode {
                0o755 => |header| header.set_mode(0o755),
                0o711 => |header| header.set_mode(0o711),
                _ => |header| header.set_mode(0o700),
            };
            tar.with(EntryType::Directory, &names.join("/"), b"", set)
        }
        Op::File(names) => tar.file(&names.join("/"), text),
        Op::Link(names, target) => tar.link(&names.join("/"), target),
        Op::Hard(names, to) => tar.hard(&names.join("/"), &to.join("/")),
        Op::Whiteout(names) => {
            let (last, parents) = names.split_last().unwrap();
            let name = [parents, &[format!(".wh.{last}")]].concat().join("/");
            tar.file(&name, "")
        }
        Op::Opaque(names) => tar.file(&format!("{}/.wh..wh..opq", names.join("/")), ""),
    }
}

/// What an overlay shows of directories above each other, the highest first.
fn merged(layers: &[PathBuf], at: &Names, shown: &mut BTreeMap<Names, Node>) {
    let mut all = BTreeSet::new();
    for layer in layers {
        let entries = fs::read_dir(layer).unwrap();
        all.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    }
    for name in all {
        let (mut directories, mut node) = (Vec::new(), None);
        for layer in layers {
            let path = layer.join(&name);
            let Ok(about) = path.symlink_metadata() else { continue };
            let kind = about.file_type();
            if kind.is_dir() {
                let mode = about.permissions().mode() & 0o7777;
                node.get_or_insert(Node::Directory(mode));
                let is_opaque = is_opaque(&path);
                directories.push(path);
                if is_opaque {
                    break;
                }
                continue;
            }
            if directories.is_empty() && !kind.is_char_device() {
                node = Some(match kind.is_symlink() {
                    true => Node::Link(fs::read_link(&path).unwrap().to_str().unwrap().to_owned()),
                    false => Node::File(fs::read_to_string(&path).unwrap()),
                });
            }
            break;
        }
        let path = [&at[..], &[name]].concat();
        if let Some(node) = node {
            shown.insert(path.clone(), node);
        }
        if !directories.is_empty() {
            merged(&directories, &path, shown);
        }
    }
}

fn is_opaque(path: &Path) -> bool {
    rustix::fs::getxattr(path, "user.overlay.opaque", &mut [0; 8]).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn layers_are_above_each_other_what_they_are_one_after_the_other(
        layers in prop::collection::vec(prop::collection::vec(op(), 1..8), 1..5),
    ) {
        let (mut fixture, mut model) = (Fixture::new(), Model::default());
        let mut paths = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            model.own.clear();
            let text = format!("layer {n}");
            let tar = layer.iter().fold(Tar::default(), |tar, op| written(op, tar, &text));
            let expected = layer.iter().try_for_each(|op| model.apply(op, &text));
            let unpacked = fixture.unpack(&tar);
            prop_assert_eq!(unpacked.is_ok(), expected.is_ok(), "{:?}", unpacked);
            let Ok(unpacked) = unpacked else { return Ok(()) };
            if unpacked.hides_all_below {
                paths.clear();
            }
            paths.insert(0, fixture.path(n));
            let mut shown = BTreeMap::new();
            merged(&paths, &Names::new(), &mut shown);
            prop_assert_eq!(&shown, &model.nodes, "layer {}", n);
        }
    }
}
