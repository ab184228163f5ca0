//! Prefixes that sessions take out of an engine's cache, and put into it.

use super::Engine;
use super::adapters::Chosen;
use super::blocks::Prefix;
use bitnet_core::KV_BLOCK;

impl Engine {
    /// What its model and cache are known by in sessions.
    pub(crate) fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// The blocks that hold the beginning of some ids, and how many of these.
    pub(crate) fn cached(&self, adapters: &Chosen, ids: &[u32]) -> (Vec<u32>, usize) {
        // The last id of a prompt is not looked for.
        let Prefix { mut blocks, part } = self.cache.blocks.find(adapters, &[ids, &[0]].concat());
        let positions = blocks.len() * KV_BLOCK + part.map_or(0, |(_, positions)| positions);
        blocks.extend(part.map(|(block, _)| block));
        (blocks, positions)
    }

    /// Puts the keys and values of some ids into the tree, for prompts that begin with them.
    ///
    /// # Errors
    /// Too few blocks can be had: so many.
    pub(crate) fn keep(&mut self, adapters: &Chosen, ids: &[u32], data: &[u8]) -> Result<(), usize> {
        let have = if self.options.prefix_cache { self.cache.blocks.available() } else { 0 };
        if ids.len().div_ceil(KV_BLOCK) > have {
            return Err(have);
        }
        let mut held: Vec<u32> = Vec::new();
        for (tokens, bytes) in ids.chunks(KV_BLOCK).zip(data.chunks_exact(self.cache.decoder.block_bytes())) {
            let block = self.cache.blocks.take().expect("as many as are needed can be had");
            self.cache.decoder.load_block(block, bytes);
            held.push(match tokens.len() {
                KV_BLOCK => self.cache.blocks.link(adapters, held.last().copied(), block, tokens),
                _ => block,
            });
        }
        self.cache.blocks.release(adapters, held, ids);
        Ok(())
    }
}
