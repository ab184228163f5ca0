//! A decoder's cache, and sequences' places in it.

use super::adapters::Chosen;
use super::blocks::{Blocks, Prefix};
use bitnet_core::KV_BLOCK;
use bitnet_model::Decoder;

/// Where a sequence lies in a cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// The blocks that hold its positions, in their order.
    pub blocks: Vec<u32>,
    /// How many of its ids have their keys and values there.
    pub computed: usize,
    /// How many of its blocks are in the tree of prefixes, the first ones.
    linked: usize,
    /// What its tokens go through.
    adapters: Chosen,
}

/// A decoder, and who holds which blocks of its cache.
pub(super) struct Cache {
    pub decoder: Box<dyn Decoder>,
    pub blocks: Blocks,
}

impl Cache {
    pub fn new(decoder: Box<dyn Decoder>, keep_prefixes: bool) -> Self {
        Self { blocks: Blocks::new(decoder.blocks(), keep_prefixes), decoder }
    }

    /// Gives the memory of blocks that hold nothing back to the system; tells how many bytes.
    pub fn trim(&mut self) -> u64 {
        self.blocks.written().into_iter().map(|block| self.decoder.discard_block(block) as u64).sum()
    }

    /// Forgets prefixes until so many bytes have gone back to the system, or there are no more; tells how many have. Where a block has
    /// no memory that could go back, only one prefix is lost.
    pub fn shrink(&mut self, missing: u64) -> u64 {
        let mut freed = 0;
        while freed < missing && self.blocks.forget().is_some() {
            match self.trim() {
                0 => break,
                bytes => freed += bytes,
            }
        }
        freed
    }

    /// A place that begins with a prefix, of tokens that went through these adapters.
    pub fn enter(&mut self, adapters: &Chosen, prefix: Prefix) -> Place {
        let mut computed = prefix.blocks.len() * KV_BLOCK;
        prefix.blocks.iter().for_each(|b| self.blocks.hold(*b));
        let (linked, mut blocks) = (prefix.blocks.len(), prefix.blocks);
        if let Some((block, positions)) = prefix.part {
            self.blocks.hold(block);
            if let Some(copy) = self.blocks.take() {
                self.decoder.copy_block(block, copy);
                blocks.push(copy);
                computed += positions;
            }
            self.blocks.give_back(block);
        }
        Place { blocks, computed, linked, adapters: Chosen::clone(adapters) }
    }

    /// Another sequence's place that begins with the same positions.
    pub fn share(&mut self, place: &Place) -> Place {
        place.blocks.iter().for_each(|b| self.blocks.hold(*b));
        place.clone()
    }

    /// Gives a place the blocks for so many more tokens; false when there are none left.
    pub fn make_room(&mut self, place: &mut Place, tokens: usize) -> bool {
        let first = place.computed / KV_BLOCK;
        if let Some(&written) = place.blocks.get(first).filter(|b| self.blocks.is_fixed(**b)) {
            // Others go on behind the same tokens, or could.
            let Some(copy) = self.blocks.take() else { return false };
            self.decoder.copy_block(written, copy);
            self.blocks.give_back(written);
            place.blocks[first] = copy;
        }
        while place.blocks.len() * KV_BLOCK < place.computed + tokens {
            let Some(block) = self.blocks.take() else { return false };
            place.blocks.push(block);
        }
        true
    }

    /// Enters the blocks that are full into the tree; `ids` are those of the sequence.
    pub fn link(&mut self, place: &mut Place, ids: &[u32]) {
        for at in place.linked..place.computed / KV_BLOCK {
            let parent = at.checked_sub(1).map(|before| place.blocks[before]);
            let tokens = &ids[at * KV_BLOCK..(at + 1) * KV_BLOCK];
            place.blocks[at] = self.blocks.link(&place.adapters, parent, place.blocks[at], tokens);
            place.linked = at + 1;
        }
    }

    /// Forgets a place's positions from `position` on.
    pub fn rewind(&mut self, place: &mut Place, position: usize) {
        if position < place.computed {
            place.computed = position;
            place.linked = place.linked.min(position / KV_BLOCK);
            for block in place.blocks.split_off(position.div_ceil(KV_BLOCK)).into_iter().rev() {
                self.blocks.give_back(block);
            }
        }
    }

    /// Gives a place's blocks back; `ids` are those of the sequence. What was computed beyond them were guesses.
    pub fn leave(&mut self, place: &mut Place, ids: &[u32]) {
        self.rewind(place, ids.len());
        self.link(place, ids);
        let Place { blocks, computed, adapters, .. } = std::mem::take(place);
        self.blocks.release(&adapters, blocks, &ids[..computed]);
    }
}
