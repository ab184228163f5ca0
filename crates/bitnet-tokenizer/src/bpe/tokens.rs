//! Tokens by their text and by their id.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// Strings one behind the other.
#[derive(Default)]
pub(super) struct Texts {
    all: String,
    ends: Vec<u32>,
}

impl Texts {
    /// # Errors
    /// There are 4 GiB of them.
    pub fn push(&mut self, text: &str) -> Result<(), String> {
        let end = u32::try_from(self.all.len() + text.len());
        self.ends.push(end.map_err(|_| "its tokens have more than 4 GiB of text".to_owned())?);
        self.all.push_str(text);
        Ok(())
    }

    pub fn get(&self, at: usize) -> &str {
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[begin as usize..self.ends[at] as usize]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|at| self.get(at))
    }
}

/// A vocabulary. Inside, a token is known by its place among all of them, which is its id where ids leave none out.
#[derive(Default)]
pub(crate) struct Tokens {
    texts: Texts,
    /// By place.
    ids: Vec<u32>,
    /// Places by the hash of their text.
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Tokens {
    /// With room for so many.
    pub fn with_capacity(count: usize) -> Self {
        Self {
            texts: Texts { all: String::new(), ends: Vec::with_capacity(count) },
            ids: Vec::with_capacity(count),
            places: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Adds a token; `false` where its text is there already, which changes nothing.
    ///
    /// # Errors
    /// There are 4 GiB of text.
    pub fn insert(&mut self, text: &str, id: u32) -> Result<bool, String> {
        if self.find(text).is_some() {
            return Ok(false);
        }
        self.texts.push(text)?;
        let place = self.ids.len() as u32;
        self.ids.push(id);
        let (texts, hasher) = (&self.texts, &self.hasher);
        let hash = |place: &u32| hasher.hash_one(texts.get(*place as usize));
        self.places.insert_unique(hash(&place), place, hash);
        Ok(true)
    }

    /// The same tokens in the order of their ids, which finding one by its id needs.
    pub(super) fn in_order(mut self) -> Self {
        if self.ids.is_sorted() {
            self.texts.all.shrink_to_fit();
            return self;
        }
        let mut order: Vec<usize> = (0..self.ids.len()).collect();
        order.sort_by_key(|place| self.ids[*place]);
        let mut sorted = Self::with_capacity(order.len());
        for place in order {
            sorted.insert(self.texts.get(place), self.ids[place]).expect("as much text as before");
        }
        sorted
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The place of a text.
    pub fn find(&self, text: &str) -> Option<u32> {
        let same = |place: &u32| self.texts.get(*place as usize) == text;
        self.places.find(self.hasher.hash_one(text), same).copied()
    }

    /// The place of an id.
    pub fn place_of(&self, id: u32) -> Option<u32> {
        let place = match self.ids.get(id as usize) {
            Some(same) if *same == id => id as usize,
            _ => self.ids.binary_search(&id).ok()?,
        };
        u32::try_from(place).ok()
    }

    /// The text at a place.
    pub fn text(&self, place: u32) -> &str {
        self.texts.get(place as usize)
    }

    /// The id at a place.
    pub fn id(&self, place: u32) -> u32 {
        self.ids[place as usize]
    }

    /// Texts and ids, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.texts.iter().zip(self.ids.iter().copied())
    }
}
