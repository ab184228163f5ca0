//! The cache's blocks: who holds them, and which of them hold a prefix that a later prompt may begin with.
//!
//! Prefixes are a tree: a block hangs below the one before it and is known by its tokens, so a block is found only if
//! everything before it is the same too, and the adapters are. Blocks in the tree are never written again. Whoever holds a block holds those above it, so
//! blocks that nobody holds can be given away from the leaves up, the least recently used first.

use super::adapters::Chosen;
use bitnet_core::KV_BLOCK;

/// A block in the tree.
#[derive(Debug)]
struct Node {
    parent: Option<u32>,
    /// What its tokens went through.
    adapters: Chosen,
    /// Its tokens; fewer than a block holds where a sequence ended in it. Such a block has no children.
    tokens: Vec<u32>,
    children: Vec<u32>,
    /// When somebody last gave it back.
    used: u64,
}

/// All blocks of a cache.
#[derive(Debug)]
pub(super) struct Blocks {
    holders: Vec<u32>,
    free: Vec<u32>,
    nodes: Vec<Option<Node>>,
    roots: Vec<u32>,
    /// Blocks in the tree that nobody holds.
    idle: usize,
    clock: u64,
    /// Whether there is a tree.
    keep: bool,
    /// Whether a block was taken since its memory was given back.
    written: Vec<bool>,
}

/// What a prompt has in common with the tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Prefix {
    /// Whole blocks.
    pub blocks: Vec<u32>,
    /// A block whose first positions, so many of them, are what comes next.
    pub part: Option<(u32, usize)>,
}

impl Blocks {
    pub fn new(count: usize, keep: bool) -> Self {
        let all = 0..count as u32;
        Self {
            holders: vec![0; count],
            free: all.clone().rev().collect(),
            nodes: all.map(|_| None).collect(),
            roots: Vec::new(),
            idle: 0,
            clock: 0,
            keep,
            written: vec![false; count],
        }
    }

    /// Blocks in all.
    pub fn count(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that can be had without taking one from anybody.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Forgets all prefixes, whose blocks nobody may hold any more.
    pub fn clear(&mut self) {
        // Whoever made that necessary writes where it likes.
        *self = Self { written: vec![true; self.count()], ..Self::new(self.count(), self.keep) };
    }

    /// How many hold a block.
    pub fn holders(&self, block: u32) -> u32 {
        self.holders[block as usize]
    }

    /// Whether what a block holds has to stay: others hold it too, or it is in the tree.
    pub fn is_fixed(&self, block: u32) -> bool {
        self.holders(block) > 1 || self.nodes[block as usize].is_some()
    }

    /// Holds a block once more.
    pub fn hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.idle -= 1;
        }
        *holders += 1;
    }

    /// A block to write to.
    pub fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            self.forget()?;
        }
        let block = self.free.pop()?;
        self.holders[block as usize] = 1;
        self.written[block as usize] = true;
        Some(block)
    }

    /// Takes the block that nobody has held for longest out of the tree, if there is one.
    pub fn forget(&mut self) -> Option<u32> {
        let leaves = (0..).zip(&self.nodes).zip(&self.holders).filter_map(|((block, node), holders)| {
            let node = node.as_ref().filter(|node| *holders == 0 && node.children.is_empty())?;
            Some((node.used, block))
        });
        let (_, block) = leaves.min()?;
        self.drop_node(block);
        Some(block)
    }

    /// Free blocks that were written; they are not any more for whoever asks again.
    pub fn written(&mut self) -> Vec<u32> {
        let written = &mut self.written;
        self.free.iter().copied().filter(|block| std::mem::take(&mut written[*block as usize])).collect()
    }

    /// Of so many blocks that somebody takes now, those whose memory is not there yet.
    pub fn unwritten(&self, take: usize) -> usize {
        let fresh = self.free.iter().filter(|block| !self.written[**block as usize]).count();
        fresh.min(take)
    }

    /// Takes a block that nobody holds out of the tree.
    fn drop_node(&mut self, block: u32) {
        let node = self.nodes[block as usize].take().expect("the block is in the tree");
        self.children(node.parent).retain(|b| *b != block);
        self.idle -= 1;
        self.free.push(block);
    }

    /// Gives a block back.
    pub fn give_back(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        match &mut self.nodes[block as usize] {
            Some(node) => {
                self.clock += 1;
                node.used = self.clock;
                self.idle += 1;
            }
            None => self.free.push(block),
        }
    }

    fn children(&mut self, parent: Option<u32>) -> &mut Vec<u32> {
        match parent {
            None => &mut self.roots,
            Some(block) => {
                &mut self.nodes[block as usize].as_mut().expect("a parent is in the tree").children
            }
        }
    }

    /// The tokens of a block in the tree, if they went through these adapters.
    fn tokens(&self, block: u32, adapters: &Chosen) -> &[u32] {
        let node = self.nodes[block as usize].as_ref().filter(|node| node.adapters == *adapters);
        node.map_or(&[], |node| &node.tokens)
    }

    /// The longest prefix of `ids` in the tree. The last id is left out: its logits are wanted.
    pub fn find(&self, adapters: &Chosen, ids: &[u32]) -> Prefix {
        let mut prefix = Prefix::default();
        let mut rest = &ids[..ids.len().saturating_sub(1)];
        let mut children = &self.roots;
        while let Some((block, common)) = children
            .iter()
            .map(|b| (*b, self.tokens(*b, adapters).iter().zip(rest).take_while(|(a, b)| a == b).count()))
            .max_by_key(|(_, common)| *common)
            .filter(|(_, common)| *common > 0)
        {
            if common < KV_BLOCK {
                prefix.part = Some((block, common));
                break;
            }
            prefix.blocks.push(block);
            rest = &rest[KV_BLOCK..];
            children = &self.nodes[block as usize].as_ref().expect("it was found in the tree").children;
        }
        prefix
    }

    /// Puts a full block, held by a sequence, below the one before it. Where the tree has such a block already, which has the same
    /// bits, the sequence gets that one for its own.
    pub fn link(&mut self, adapters: &Chosen, parent: Option<u32>, block: u32, tokens: &[u32]) -> u32 {
        if !self.keep {
            return block;
        }
        if let Some(twin) = self.twin(adapters, parent, tokens) {
            self.hold(twin);
            self.give_back(block);
            return twin;
        }
        self.insert(adapters, parent, block, tokens);
        block
    }

    fn twin(&mut self, adapters: &Chosen, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let children = std::mem::take(self.children(parent));
        let twin = children.iter().copied().find(|b| self.tokens(*b, adapters) == tokens);
        *self.children(parent) = children;
        twin
    }

    fn insert(&mut self, adapters: &Chosen, parent: Option<u32>, block: u32, tokens: &[u32]) {
        self.nodes[block as usize] = Some(Node {
            parent,
            adapters: Chosen::clone(adapters),
            tokens: tokens.to_vec(),
            children: Vec::new(),
            used: self.clock,
        });
        self.children(parent).push(block);
    }

    /// Takes back the blocks of a sequence that ends or has to wait; `ids` are those whose keys and values they hold, and all full
    /// blocks are linked. What fills the last block in part is kept too.
    pub fn release(&mut self, adapters: &Chosen, blocks: Vec<u32>, ids: &[u32]) {
        let full = ids.len() / KV_BLOCK;
        let tail = &ids[full * KV_BLOCK..];
        if let Some(&last) = blocks.get(full)
            && self.keep
            && !tail.is_empty()
            && !self.is_fixed(last)
        {
            let parent = full.checked_sub(1).map(|at| blocks[at]);
            let known = std::mem::take(self.children(parent));
            let covered = known.iter().any(|b| self.tokens(*b, adapters).starts_with(tail));
            let shorter: Vec<u32> = known
                .iter()
                .copied()
                .filter(|b| self.holders(*b) == 0)
                .filter(|b| {
                    let tokens = self.tokens(*b, adapters);
                    !tokens.is_empty() && tail.starts_with(tokens)
                })
                .collect();
            *self.children(parent) = known;
            if !covered {
                shorter.into_iter().for_each(|b| self.drop_node(b));
                self.insert(adapters, parent, last, tail);
            }
        }
        blocks.into_iter().rev().for_each(|block| self.give_back(block));
    }
}
