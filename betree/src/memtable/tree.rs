//! The directory of a memtable: a B+ tree of [`Slots`] over the entries in the arena.
//!
//! Inner nodes separate their children by entries too (an entry stays in the arena for good), so no key is stored
//! twice. Entries are only ever added. Changed under the memtable's write lock, searched under its read lock.
//!
//! Invariants: `memtree.children_separated` (child i holds the entries from separator i−1, inclusive, to separator i,
//! exclusive), `memtree.leaves_filled` (no leaf but an empty tree's only one is empty), `memtree.depth_even`, `memtree.last_is_greatest`.

use super::arena::{Arena, Loc};
use super::slots::Slots;
use crate::types::Seqno;
use betree_storage::prefetch;

/// Slots of a leaf.
pub(super) const LEAF: usize = 64;

/// Separators of an inner node.
const FANOUT: usize = 256;

pub(super) type Leaf = Slots<LEAF>;

pub(super) struct Inner {
    separators: Slots<FANOUT>,
    children: Vec<Node>,
}

pub(super) enum Node {
    Leaf(Box<Leaf>),
    Inner(Box<Inner>),
}

pub(super) struct Tree {
    root: Node,
    bytes: usize,
    /// The greatest key of the entries: what comes after it needs no search.
    last: Option<Vec<u8>>,
}

/// A place between two entries: before slot `at` of `leaf`, with the subtrees to either side of the leaf.
pub(super) struct Place<'a> {
    pub leaf: &'a Leaf,
    pub at: usize,
    left: Option<&'a Node>,
    right: Option<&'a Node>,
}

impl<'a> Place<'a> {
    /// Places of entries from here to the end of a leaf; empty only at the end of the tree.
    pub(super) fn after(&self) -> &'a [Loc] {
        match self.right {
            Some(right) if self.at == self.leaf.len() => right.edge_leaf(Node::first).locs(),
            _ => &self.leaf.locs()[self.at..],
        }
    }

    /// Places of entries from the start of a leaf up to here; empty only at the start of the tree.
    pub(super) fn before(&self) -> &'a [Loc] {
        match self.left {
            Some(left) if self.at == 0 => left.edge_leaf(Node::last).locs(),
            _ => &self.leaf.locs()[..self.at],
        }
    }
}

impl Inner {
    fn first(&self) -> &Node {
        &self.children[0]
    }

    fn last(&self) -> &Node {
        &self.children[self.children.len() - 1]
    }
}

impl Node {
    fn first(inner: &Inner) -> &Node {
        inner.first()
    }

    fn last(inner: &Inner) -> &Node {
        inner.last()
    }

    fn edge_leaf(&self, edge: fn(&Inner) -> &Node) -> &Leaf {
        let mut node = self;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf,
                Node::Inner(inner) => node = edge(inner),
            }
        }
    }
}

/// Levels of inner nodes that a [`Way`] remembers: enough for any memtable that an arena can hold.
const LEVELS: usize = 6;

/// The way from the root down to a leaf.
pub(super) enum Way {
    /// Which child to take at each level.
    Through([u16; LEVELS]),
    /// Behind the last entry.
    End,
}

/// What a split adds to the parent: the first entry of the new right-hand node, and that node.
struct Split {
    separator: Loc,
    right: Node,
}

struct Insertion<'a> {
    arena: &'a Arena,
    key: &'a [u8],
    seqno: Seqno,
    loc: Loc,
    way: &'a Way,
    added_bytes: usize,
    older: Option<Loc>,
}

impl Tree {
    pub(super) fn new() -> Tree {
        Tree { root: Node::Leaf(Box::new(Leaf::new())), bytes: size_of::<Leaf>(), last: None }
    }

    /// Bytes of the nodes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place before the first entry that is not before (`key`, `seqno`) in slot order.
    pub(super) fn seek(&self, arena: &Arena, key: &[u8], seqno: Seqno) -> Place<'_> {
        let (mut node, mut left, mut right) = (&self.root, None, None);
        loop {
            match node {
                Node::Leaf(leaf) => {
                    prefetch::value(&**leaf);
                    return Place { leaf, at: leaf.lower_bound(arena, key, seqno), left, right };
                }
                Node::Inner(inner) => {
                    let i = inner.separators.lower_bound(arena, key, seqno);
                    left = if i > 0 { Some(&inner.children[i - 1]) } else { left };
                    right = inner.children.get(i + 1).or(right);
                    node = &inner.children[i];
                }
            }
        }
    }

    /// The place after the last entry.
    pub(super) fn end(&self) -> Place<'_> {
        let leaf = self.root.edge_leaf(Node::last);
        Place { leaf, at: leaf.len(), left: None, right: None }
    }

    /// The way to the leaf for an entry. Asks the processor for the leaf.
    pub(super) fn way(&self, arena: &Arena, key: &[u8], seqno: Seqno) -> Way {
        if self.last.as_deref().is_none_or(|last| key > last) {
            return Way::End;
        }
        let mut way = [0; LEVELS];
        let mut node = &self.root;
        for child in &mut way {
            let Node::Inner(inner) = node else { break };
            let i = inner.separators.lower_bound(arena, key, seqno);
            // At most FANOUT.
            *child = i as u16;
            node = &inner.children[i];
        }
        if let Node::Leaf(leaf) = node {
            prefetch::value(&**leaf);
        }
        Way::Through(way)
    }

    /// Adds the entry at `loc`. The entry of its key before it, if that lies in the same leaf. REQUIRES an entry with another Seqno than those of its
    /// key in the tree, and the way to its leaf in the tree as it is.
    pub(super) fn insert(
        &mut self,
        arena: &Arena,
        loc: Loc,
        key: &[u8],
        seqno: Seqno,
        way: &Way,
    ) -> Option<Loc> {
        let mut insertion = Insertion { arena, key, seqno, loc, way, added_bytes: 0, older: None };
        if let Some(split) = insertion.insert_in_node(&mut self.root, 0, true) {
            let old = std::mem::replace(&mut self.root, split.right);
            let mut inner = Inner::new();
            inner.children.push(old);
            // `self.root` holds the right half until here.
            let right = std::mem::replace(&mut self.root, Node::Leaf(Box::new(Leaf::new())));
            inner.separators.insert(arena, 0, arena.key(split.separator), split.separator);
            inner.children.push(right);
            self.root = Node::Inner(inner);
            self.bytes += Inner::BYTES;
        }
        self.bytes += insertion.added_bytes;
        if matches!(way, Way::End) {
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
        }
        insertion.older
    }
}

impl Inner {
    const BYTES: usize = size_of::<Inner>() + (FANOUT + 1) * size_of::<Node>();

    fn new() -> Box<Inner> {
        Box::new(Inner { separators: Slots::new(), children: Vec::with_capacity(FANOUT + 1) })
    }
}

impl Insertion<'_> {
    /// `depth`: the level of `node` below the root; `rightmost`: nothing lies to the right of it.
    fn insert_in_node(&mut self, node: &mut Node, depth: usize, rightmost: bool) -> Option<Split> {
        match node {
            Node::Leaf(leaf) => self.insert_in_leaf(leaf, rightmost),
            Node::Inner(inner) => {
                let i = match self.way {
                    Way::End => inner.children.len() - 1,
                    Way::Through(way) => match way.get(depth) {
                        Some(&i) => usize::from(i),
                        None => inner.separators.lower_bound(self.arena, self.key, self.seqno),
                    },
                };
                let rightmost = rightmost && i + 1 == inner.children.len();
                let split = self.insert_in_node(&mut inner.children[i], depth + 1, rightmost)?;
                self.insert_in_inner(inner, i, split, rightmost)
            }
        }
    }

    fn insert_in_leaf(&mut self, leaf: &mut Leaf, rightmost: bool) -> Option<Split> {
        let at = match self.way {
            Way::End => leaf.len(),
            Way::Through(_) => leaf.lower_bound(self.arena, self.key, self.seqno),
        };
        self.older = leaf.of_key(self.arena, at, self.key);
        if !leaf.is_full() {
            leaf.insert(self.arena, at, self.key, self.loc);
            return None;
        }
        self.added_bytes += size_of::<Leaf>();
        let mut right;
        if at == leaf.len() && rightmost {
            // Ascending keys fill their leaves.
            leaf.tighten(self.arena);
            right = Box::new(Leaf::like(leaf));
            right.insert(self.arena, 0, self.key, self.loc);
        } else {
            right = Box::new(Leaf::new());
            let middle = leaf.split_point();
            leaf.split_into(middle, &mut right);
            leaf.tighten(self.arena);
            right.tighten(self.arena);
            if at <= middle {
                leaf.insert(self.arena, at, self.key, self.loc);
            } else {
                right.insert(self.arena, at - middle, self.key, self.loc);
            }
        }
        Some(Split { separator: right.locs()[0], right: Node::Leaf(right) })
    }

    fn insert_in_inner(
        &mut self,
        inner: &mut Inner,
        i: usize,
        split: Split,
        rightmost: bool,
    ) -> Option<Split> {
        let key = self.arena.key(split.separator);
        if !inner.separators.is_full() {
            inner.separators.insert(self.arena, i, key, split.separator);
            inner.children.insert(i + 1, split.right);
            return None;
        }
        // The separator before `middle` moves up; it bounds both halves, so neither keeps it.
        let middle = if rightmost { FANOUT - 1 } else { inner.separators.split_point() };
        let mut right = Inner::new();
        self.added_bytes += Inner::BYTES;
        inner.separators.split_into(middle, &mut right.separators);
        right.children.extend(inner.children.drain(middle..));
        let separator = inner.separators.pop()?;
        inner.separators.tighten(self.arena);
        right.separators.tighten(self.arena);
        let (half, i) = if i < middle { (inner, i) } else { (&mut *right, i - middle) };
        half.separators.insert(self.arena, i, key, split.separator);
        half.children.insert(i + 1, split.right);
        Some(Split { separator, right: Node::Inner(right) })
    }
}

#[cfg(test)]
impl Tree {
    /// Asserts the invariants and answers the number of entries.
    pub(super) fn check(&self, arena: &Arena) -> usize {
        fn walk(node: &Node, arena: &Arena, entries: &mut Vec<Loc>, is_root: bool) -> usize {
            match node {
                Node::Leaf(leaf) => {
                    assert!(is_root || leaf.len() > 0, "memtree.leaves_filled");
                    leaf.check(arena);
                    entries.extend(leaf.locs());
                    1
                }
                Node::Inner(inner) => {
                    inner.separators.check(arena);
                    assert_eq!(
                        inner.children.len(),
                        inner.separators.len() + 1,
                        "memtree.children_separated"
                    );
                    let mut depth = None;
                    for (i, child) in inner.children.iter().enumerate() {
                        let from = entries.len();
                        let child_depth = walk(child, arena, entries, false);
                        assert_eq!(*depth.get_or_insert(child_depth), child_depth, "memtree.depth_even");
                        if i > 0 {
                            let bound = arena.entry(inner.separators.locs()[i - 1]);
                            let (left, right) = (arena.entry(entries[from - 1]), arena.entry(entries[from]));
                            let separated = (left.key, bound.seqno) < (bound.key, left.seqno)
                                && (bound.key, right.seqno) <= (right.key, bound.seqno);
                            assert!(separated, "memtree.children_separated");
                        }
                    }
                    depth.unwrap_or(0) + 1
                }
            }
        }
        let mut entries = Vec::new();
        walk(&self.root, arena, &mut entries, true);
        let last = entries.last().map(|loc| arena.key(*loc));
        assert_eq!(self.last.as_deref(), last, "memtree.last_is_greatest");
        for pair in entries.windows(2) {
            let (a, b) = (arena.entry(pair[0]), arena.entry(pair[1]));
            assert!((a.key, b.seqno) < (b.key, a.seqno), "slots.sorted over leaves");
        }
        entries.len()
    }
}
