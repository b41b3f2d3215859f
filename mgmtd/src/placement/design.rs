//! Block designs: `count` blocks of `replicas` different domains, every domain used as often as it may, every two domains meeting
//! about equally often.
//!
//! First a cyclic design: base blocks over the integers modulo n, each shifted n times. Two domains meet as often as their difference
//! occurs within the base blocks, so a search over a few dozen numbers balances tens of thousands of pairs. What does not divide is
//! filled greedily. Then a local search over the real blocks: members of two blocks change places where that brings pairs closer to
//! even. Both accept small losses at first, fewer and fewer (annealing), and stop when the bound is reached.

/// How often every two domains meet.
pub struct Pairs {
    n: usize,
    met: Vec<u32>,
    uses: Vec<usize>,
}

impl Pairs {
    /// Counts a design.
    pub fn count(blocks: &[Vec<usize>], n: usize) -> Pairs {
        let mut pairs = Pairs { n, met: vec![0; n * n], uses: vec![0; n] };
        for block in blocks {
            for (i, &a) in block.iter().enumerate() {
                pairs.uses[a] += 1;
                for &b in &block[..i] {
                    pairs.met[a * n + b] += 1;
                    pairs.met[b * n + a] += 1;
                }
            }
        }
        pairs
    }
    /// Blocks that both are in.
    pub fn get(&self, a: usize, b: usize) -> usize {
        self.met[a * self.n + b] as usize
    }
    /// Blocks that each is in.
    pub fn uses(&self) -> &[usize] {
        &self.uses
    }
    /// Whether all are used equally often.
    pub fn is_uniform(&self) -> bool {
        self.uses.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// SplitMix64: the same numbers in every release, so that a placement can be computed again.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Makes a design. `uses[i]` is how many blocks domain `i` may be in; at most `replicas - 1` of the sum stay unused.
pub fn design(uses: &[usize], replicas: usize, count: usize, seed: u64) -> Vec<Vec<usize>> {
    let n = uses.len();
    let mut random = Random(seed ^ 0xCA7E_4A00);
    let mut left = uses.to_vec();
    let mut blocks = Vec::with_capacity(count);
    let rounds = uses.iter().min().copied().unwrap_or(0) / replicas;
    if n > replicas && uses.iter().all(|&u| u == uses[0]) {
        for base in difference_blocks(n, replicas, rounds, &mut random) {
            for shift in 0..n {
                blocks.push(base.iter().map(|&a| (a + shift) % n).collect());
            }
        }
        left.iter_mut().for_each(|left| *left -= rounds * replicas);
    }
    fill(&mut blocks, &mut left, replicas, count, &mut random);
    improve(&mut blocks, n, &mut random);
    blocks
}

/// `rounds` base blocks whose differences are spread as evenly as the search gets them.
fn difference_blocks(n: usize, replicas: usize, rounds: usize, random: &mut Random) -> Vec<Vec<usize>> {
    let mut bases: Vec<Vec<usize>> = (0..rounds).map(|_| distinct(n, replicas, random)).collect();
    if replicas < 2 || rounds == 0 {
        return bases;
    }
    let mut occurs = vec![0i64; n];
    let difference = |a: usize, b: usize| if a >= b { a - b } else { n + a - b };
    for base in &bases {
        for (i, &a) in base.iter().enumerate() {
            for &b in &base[..i] {
                occurs[difference(a, b)] += 1;
                occurs[difference(b, a)] += 1;
            }
        }
    }
    let even = (rounds * replicas * (replicas - 1)).div_ceil(n - 1) as i64;
    let trials = 2_000 * rounds * replicas + 200_000;
    for trial in 0..trials {
        if trial % 64 == 0 && occurs[1..].iter().all(|&times| times <= even) {
            break;
        }
        let which = random.below(rounds);
        let place = random.below(replicas);
        let (old, new) = (bases[which][place], random.below(n));
        if bases[which].contains(&new) {
            continue;
        }
        let mut bump = |base: &[usize], from: usize, by: i64| -> i64 {
            let mut cost = 0;
            for (i, &b) in base.iter().enumerate() {
                if i != place {
                    for d in [difference(from, b), difference(b, from)] {
                        // (x + by)^2 - x^2
                        cost += 2 * by * occurs[d] + 1;
                        occurs[d] += by;
                    }
                }
            }
            cost
        };
        let cost = bump(&bases[which], old, -1) + bump(&bases[which], new, 1);
        if accept(cost as f64, trial, trials, 2.0, random) {
            bases[which][place] = new;
        } else {
            bump(&bases[which], new, -1);
            bump(&bases[which], old, 1);
        }
    }
    bases
}

fn distinct(n: usize, replicas: usize, random: &mut Random) -> Vec<usize> {
    let mut block = Vec::with_capacity(replicas);
    while block.len() < replicas {
        let a = random.below(n);
        if !block.contains(&a) {
            block.push(a);
        }
    }
    block
}

/// Annealing: a loss is taken with a probability that falls with its size and with the trials made.
fn accept(cost: f64, trial: usize, trials: usize, heat: f64, random: &mut Random) -> bool {
    let heat = heat * (1.0 - trial as f64 / trials as f64);
    cost <= 0.0 || (heat > 0.0 && random.unit() < (-cost / heat).exp())
}

/// Adds blocks until there are `count`, each of the domains with most uses left; among equals those that met least, then at random.
/// Taking from the fullest is what makes the last blocks possible.
fn fill(
    blocks: &mut Vec<Vec<usize>>,
    left: &mut [usize],
    replicas: usize,
    count: usize,
    random: &mut Random,
) {
    let n = left.len();
    let mut pairs = Pairs::count(blocks, n);
    while blocks.len() < count {
        let mut block: Vec<usize> = Vec::with_capacity(replicas);
        let blocks_to_come = count - blocks.len();
        for _ in 0..replicas {
            // A domain that has to be in every block that is still to come goes first.
            let next = (0..n)
                .filter(|a| left[*a] > 0 && !block.contains(a))
                .max_by_key(|&a| {
                    let met: usize = block.iter().map(|&b| pairs.get(a, b)).sum();
                    (left[a] >= blocks_to_come, left[a], std::cmp::Reverse(met), random.next())
                })
                .expect("uses are capped at the number of blocks, so enough domains are left");
            left[next] -= 1;
            block.push(next);
        }
        for (i, &a) in block.iter().enumerate() {
            for &b in &block[..i] {
                pairs.met[a * n + b] += 1;
                pairs.met[b * n + a] += 1;
            }
        }
        blocks.push(block);
    }
}

/// The local search's view of a design: how often pairs meet, and how often they should.
struct Search {
    n: usize,
    met: Vec<u32>,
    even: Vec<f64>,
    /// Meetings above the even share rounded up, over all pairs: 0 is the best that counting allows.
    excess: i64,
}

impl Search {
    fn new(blocks: &[Vec<usize>], n: usize, replicas: usize) -> Search {
        let Pairs { met, uses, .. } = Pairs::count(blocks, n);
        let total: usize = uses.iter().sum();
        // What moves from a failed domain, spread over the others in proportion to their uses; both directions averaged.
        let share = |a: usize, b: usize| {
            let moved = uses[a] as f64 * (replicas - 1) as f64;
            moved * uses[b] as f64 / (total - uses[a]).max(1) as f64
        };
        let even = (0..n * n).map(|at| (share(at / n, at % n) + share(at % n, at / n)) / 2.0).collect();
        let mut search = Search { n, met, even, excess: 0 };
        for a in 0..n {
            search.excess += (0..a).map(|b| search.above(a * n + b)).sum::<i64>();
        }
        search
    }

    fn above(&self, at: usize) -> i64 {
        (i64::from(self.met[at]) - self.even[at].ceil() as i64).max(0)
    }

    /// One meeting more or fewer of a pair; gives the change of cost (squared distance from even).
    fn bump(&mut self, a: usize, b: usize, more: bool) -> f64 {
        let (at, mirror) = (a * self.n + b, b * self.n + a);
        let (mean, met) = (self.even[at], f64::from(self.met[at]));
        self.excess -= self.above(at);
        self.met[at] = if more { self.met[at] + 1 } else { self.met[at] - 1 };
        self.met[mirror] = self.met[at];
        self.excess += self.above(at);
        let now = f64::from(self.met[at]);
        ((now - mean).powi(2) - (met - mean).powi(2)) / mean.max(1.0)
    }

    /// `enters` takes the place of `leaves` at `place` of `block`.
    fn replace(&mut self, block: &[usize], place: usize, leaves: usize, enters: usize) -> f64 {
        let mut cost = 0.0;
        for (index, &member) in block.iter().enumerate() {
            if index != place {
                cost += self.bump(leaves, member, false) + self.bump(enters, member, true);
            }
        }
        cost
    }
}

/// Lets members of two blocks change places until every pair meets at most as often as the even share rounded up, or trials run out.
fn improve(blocks: &mut Vec<Vec<usize>>, n: usize, random: &mut Random) {
    let replicas = blocks.first().map_or(0, Vec::len);
    if blocks.len() < 2 || replicas < 2 || n == replicas {
        return;
    }
    let mut search = Search::new(blocks, n, replicas);
    let before = (search.excess, blocks.clone());
    let trials = (blocks.len() * 400).clamp(100_000, 3_000_000);
    for trial in 0..trials {
        if search.excess == 0 {
            return;
        }
        let (one, other) = (random.below(blocks.len()), random.below(blocks.len()));
        let (p, q) = (random.below(replicas), random.below(replicas));
        let (x, y) = (blocks[one][p], blocks[other][q]);
        if one == other || x == y || blocks[one].contains(&y) || blocks[other].contains(&x) {
            continue;
        }
        // Only a block with a pair that meets too often is worth a look, mostly.
        let hot = blocks[one].iter().any(|&member| member != x && search.above(x * n + member) > 0);
        if !hot && random.below(16) != 0 {
            continue;
        }
        let cost = search.replace(&blocks[one], p, x, y) + search.replace(&blocks[other], q, y, x);
        if accept(cost, trial, trials, 0.6, random) {
            blocks[one][p] = y;
            blocks[other][q] = x;
        } else {
            search.replace(&blocks[one], p, y, x);
            search.replace(&blocks[other], q, x, y);
        }
    }
    if search.excess > before.0 {
        *blocks = before.1;
    }
}
