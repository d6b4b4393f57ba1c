"use strict";
// The mathematics of the figure on the first page: what the best possible network knows in the plane.
// t = 0 is data, t = 1 is noise, x_t = (1 - t) data + t noise. tests/docs/test_plane.py compares it with the package.

(function (root) {
  const STEP = 0.05; // of the tables of log survival
  const REACH = 10; // beyond the sample's length, where they end
  const EXTENT = 4.8; // of the tables over the plane
  const COARSE = 64; // their cells from end to end
  const FINE = 128;
  const PRIOR = 0.001; // of a batch, so that no chance is exactly 0

  /** Uniform numbers in [0, 1) from a seed (mulberry32). */
  function uniform(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = Math.imul(state ^ (state >>> 15), state | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** `count` points of N(0, I), [x, y, x, y, ...]. */
  function gaussian(count, draw) {
    const out = new Float64Array(2 * count);
    for (let i = 0; i < count; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - draw()));
      const angle = 2 * Math.PI * draw();
      out[2 * i] = radius * Math.cos(angle);
      out[2 * i + 1] = radius * Math.sin(angle);
    }
    return out;
  }

  const polynomial = (coefficients, x) => coefficients.reduceRight((sum, c) => sum * x + c, 0);

  const I0_NEAR = [1, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813];
  const I0_FAR = [
    0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281, -0.02057706, 0.02635537, -0.01647633, 0.00392377,
  ];
  const I1_NEAR = [0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411];
  const I1_FAR = [
    0.39894228, -0.03988024, -0.00362018, 0.00163801, -0.01031555, 0.02282967, -0.02895312, 0.01787654, -0.00420059,
  ];

  /** exp(-x) I_0(x), x >= 0 (Abramowitz and Stegun 9.8.1, 9.8.2). */
  function bessel0(x) {
    return x < 3.75
      ? Math.exp(-x) * polynomial(I0_NEAR, (x / 3.75) ** 2)
      : polynomial(I0_FAR, 3.75 / x) / Math.sqrt(x);
  }

  /** exp(-x) I_1(x), x >= 0 (Abramowitz and Stegun 9.8.3, 9.8.4). */
  function bessel1(x) {
    return x < 3.75
      ? Math.exp(-x) * x * polynomial(I1_NEAR, (x / 3.75) ** 2)
      : polynomial(I1_FAR, 3.75 / x) / Math.sqrt(x);
  }

  /** Log density at d > 0 of the distance from a sample of length a to N(0, I) noise. */
  function logDistance(a, d) {
    return Math.log(d) - (d - a) ** 2 / 2 + Math.log(bessel0(a * d));
  }

  /** Log survival far out: the density times Mills' ratio at its logarithmic slope. */
  function logFarSurvival(a, d) {
    const slope = d - 1 / d - (a * bessel1(a * d)) / bessel0(a * d);
    let mills = 0;
    for (let n = 12; n > 0; n--) mills = n / (slope + mills);
    return logDistance(a, d) - Math.log(slope + mills);
  }

  /** log P(|noise - x| > d) for |x| = a, as a function of d: a table, by its values and slopes. */
  function survivalTable(a) {
    const size = Math.ceil((a + REACH) / STEP) + 1;
    const log = new Float64Array(size);
    const slope = new Float64Array(size);
    let survival = Math.exp(logFarSurvival(a, (size - 1) * STEP));
    let above = Math.exp(logDistance(a, (size - 1) * STEP));
    for (let j = size - 1; ; j--) {
      log[j] = Math.log(survival);
      slope[j] = (-above / survival) * STEP;
      if (j === 0) break;
      const middle = Math.exp(logDistance(a, (j - 0.5) * STEP));
      const below = j > 1 ? Math.exp(logDistance(a, (j - 1) * STEP)) : 0;
      survival += (STEP / 6) * (below + 4 * middle + above);
      above = below;
    }
    return { a, log, slope };
  }

  function logSurvival(table, d) {
    const place = d / STEP;
    const j = Math.floor(place);
    const { log, slope } = table;
    if (j >= log.length - 1) return logFarSurvival(table.a, d);
    const s = place - j;
    const r = 1 - s;
    return r * r * ((1 + 2 * s) * log[j] + s * slope[j]) + s * s * ((1 + 2 * r) * log[j + 1] - r * slope[j + 1]);
  }

  // A density has logRatio(i, nx, ny) = log p(n | x_i) / phi(n), up to a constant.

  /** No pairing: phi(n). */
  function independentDensity() {
    return { logRatio: () => 0 };
  }

  /** The nearest of k: p_k(n | x) = k phi(n) [1 - F(|n - x|^2)]^(k - 1). */
  function knnDensity(points, k) {
    if (k === 1) return independentDensity();
    const tables = [];
    for (let i = 0; i < points.length; i += 2) tables.push(survivalTable(Math.hypot(points[i], points[i + 1])));
    return {
      logRatio(i, nx, ny) {
        const dx = nx - points[2 * i];
        const dy = ny - points[2 * i + 1];
        return Math.log(k) + (k - 1) * logSurvival(tables[i], Math.sqrt(dx * dx + dy * dy));
      },
    };
  }

  /** The points of a table over the plane, [x, y, x, y, ...]. */
  function gridPoints(cells) {
    const axis = Array.from({ length: cells + 1 }, (_, j) => (2 * j / cells - 1) * EXTENT);
    return axis.flatMap((x) => axis.flatMap((y) => [x, y]));
  }

  /** `table` [points, width] at (nx, ny) in column i, between the points; beyond the edge as at the edge. */
  function readTable(table, cells, width, i, nx, ny) {
    const inside = (value) => Math.min(Math.max((value / EXTENT + 1) * (cells / 2), 0), cells - 1e-6);
    const x = inside(nx);
    const y = inside(ny);
    const right = x - Math.floor(x);
    const up = y - Math.floor(y);
    const at = (Math.floor(x) * (cells + 1) + Math.floor(y)) * width + i;
    const next = at + (cells + 1) * width;
    const low = (1 - up) * table[at] + up * table[at + width];
    const high = (1 - up) * table[next] + up * table[next + width];
    return (1 - right) * low + right * high;
  }

  /** Noises of `density` given to other samples: one density for all, its mean over the samples. */
  function shuffledDensity(points, density) {
    const count = points.length / 2;
    const grid = gridPoints(FINE);
    const table = new Float64Array(grid.length / 2);
    for (let g = 0; g < table.length; g++) {
      let sum = 0;
      for (let i = 0; i < count; i++) sum += Math.exp(density.logRatio(i, grid[2 * g], grid[2 * g + 1]));
      table[g] = Math.log(sum / count);
    }
    return { logRatio: (i, nx, ny) => readTable(table, FINE, 1, 0, nx, ny) };
  }

  /**
   * Which column each row gets at least cost (the Hungarian method, O(rows^2 columns)), rows <= columns,
   * and the potentials: cost >= row + column, equal where they are paired.
   */
  function assign(cost, rows, columns) {
    const row = new Float64Array(rows);
    const column = new Float64Array(columns);
    const owner = new Int32Array(columns).fill(-1);
    const from = new Int32Array(columns);
    const least = new Float64Array(columns);
    const done = new Uint8Array(columns);
    for (let start = 0; start < rows; start++) {
      least.fill(Infinity);
      done.fill(0);
      let r = start;
      let last = -1;
      const path = [];
      for (;;) {
        let delta = Infinity;
        let next = -1;
        for (let c = 0; c < columns; c++) {
          if (done[c]) continue;
          const reduced = cost[r * columns + c] - row[r] - column[c];
          if (reduced < least[c]) {
            least[c] = reduced;
            from[c] = last;
          }
          if (least[c] < delta) {
            delta = least[c];
            next = c;
          }
        }
        row[start] += delta;
        for (const c of path) {
          row[owner[c]] += delta;
          column[c] -= delta;
        }
        for (let c = 0; c < columns; c++) if (!done[c]) least[c] -= delta;
        done[next] = 1;
        last = next;
        if (owner[next] < 0) break;
        path.push(next);
        r = owner[next];
      }
      while (last >= 0) {
        const before = from[last];
        owner[last] = before < 0 ? start : owner[before];
        last = before;
      }
    }
    const chosen = new Int32Array(rows);
    owner.forEach((r, c) => {
      if (r >= 0) chosen[r] = c;
    });
    return { chosen, owner, row, column };
  }

  /** The noise of each of B points so that the sum of squared distances is least. */
  function assignNoise(points, noise) {
    const count = points.length / 2;
    const cost = new Float64Array(count * count);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) {
        cost[i * count + j] = (points[2 * i] - noise[2 * j]) ** 2 + (points[2 * i + 1] - noise[2 * j + 1]) ** 2;
      }
    }
    const { chosen } = assign(cost, count, count);
    const out = new Float64Array(2 * count);
    chosen.forEach((j, i) => out.set([noise[2 * j], noise[2 * j + 1]], 2 * i));
    return out;
  }

  /**
   * Weights c [B] of the batch's diagram: one more noise n gets argmin_i c_i - <n, x_i>. c_i is what the other
   * B - 1 noises cost without sample i, up to a constant: the shortest chain from i to the sample left over.
   */
  function diagram(points, noise) {
    const columns = points.length / 2;
    const rows = columns - 1;
    const cost = new Float64Array(rows * columns);
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        cost[r * columns + c] = -(noise[2 * r] * points[2 * c] + noise[2 * r + 1] * points[2 * c + 1]);
      }
    }
    const { owner, row, column } = assign(cost, rows, columns);
    const free = owner.indexOf(-1);
    const length = new Float64Array(columns).fill(Infinity);
    const done = new Uint8Array(columns);
    length[free] = 0;
    for (let step = 0; step < columns; step++) {
      let next = -1;
      for (let c = 0; c < columns; c++) if (!done[c] && (next < 0 || length[c] < length[next])) next = c;
      done[next] = 1;
      for (let c = 0; c < columns; c++) {
        if (done[c]) continue;
        const reduced = cost[owner[c] * columns + next] - row[owner[c]] - column[next];
        length[c] = Math.min(length[c], length[next] + reduced);
      }
    }
    return length.map((value, c) => value + column[free] - column[c]);
  }

  /** Assignment: p(n | x_i) = N phi(n) P(i | n), P counted over batches that `add` adds. */
  function assignmentDensity(points) {
    const count = points.length / 2;
    const grid = gridPoints(COARSE);
    const table = new Float32Array((grid.length / 2) * count).fill(PRIOR);
    return {
      batches: 0,
      add(noise) {
        const weights = diagram(points, noise);
        for (let g = 0; g < grid.length / 2; g++) {
          const nx = grid[2 * g];
          const ny = grid[2 * g + 1];
          let winner = 0;
          let least = Infinity;
          for (let i = 0; i < count; i++) {
            const value = weights[i] - nx * points[2 * i] - ny * points[2 * i + 1];
            if (value < least) {
              least = value;
              winner = i;
            }
          }
          table[g * count + winner] += 1;
        }
        this.batches += 1;
      },
      logRatio: (i, nx, ny) => Math.log(readTable(table, COARSE, count, i, nx, ny)),
    };
  }

  /**
   * At t > 0: p(x_i | x_t) proportional to p(n_i | x_i), n_i = (x_t - (1 - t) x_i) / t, into `weights` [N]; returns the
   * expected sample and exp of the entropy, the number of data that are mixed here.
   */
  function posterior(density, points, x, y, t, weights) {
    const count = points.length / 2;
    let most = -Infinity;
    for (let i = 0; i < count; i++) {
      const nx = (x - (1 - t) * points[2 * i]) / t;
      const ny = (y - (1 - t) * points[2 * i + 1]) / t;
      weights[i] = density.logRatio(i, nx, ny) - (nx * nx + ny * ny) / 2;
      if (weights[i] > most) most = weights[i];
    }
    let sum = 0;
    let weighted = 0;
    let meanX = 0;
    let meanY = 0;
    for (let i = 0; i < count; i++) {
      const log = weights[i] - most;
      const weight = Math.exp(log);
      weights[i] = weight;
      sum += weight;
      if (weight > 0) weighted += weight * log;
      meanX += weight * points[2 * i];
      meanY += weight * points[2 * i + 1];
    }
    for (let i = 0; i < count; i++) weights[i] /= sum;
    return { x: meanX / sum, y: meanY / sum, effective: Math.exp(Math.log(sum) - weighted / sum) };
  }

  /** x_t of all pairs, [x, y, ...]. */
  const mix = (points, noise, t) => points.map((value, i) => (1 - t) * value + t * noise[i]);

  /** Mean number of data mixed at x_t of the pairs. */
  function meanEffective(density, points, noise, t) {
    const at = mix(points, noise, t);
    const weights = new Float64Array(points.length / 2);
    let sum = 0;
    for (let i = 0; i < at.length; i += 2) {
      sum += posterior(density, points, at[i], at[i + 1], t, weights).effective;
    }
    return sum / (at.length / 2);
  }

  /** [steps + 1] times from 1 to 0, closer together near the data. */
  const pathTimes = (steps) => Array.from({ length: steps + 1 }, (_, i) => (1 - i / steps) ** 2);

  /** The sampling path of the best network from (x, y): [steps + 1] points, second order in the step. */
  function samplingPath(density, points, x, y, steps) {
    const times = pathTimes(steps);
    const weights = new Float64Array(points.length / 2);
    const path = new Float64Array(2 * (steps + 1));
    path.set([x, y]);
    let mean = posterior(density, points, x, y, 1, weights);
    for (let n = 1; n <= steps; n++) {
      const share = times[n] / times[n - 1];
      x = share * x + (1 - share) * mean.x;
      y = share * y + (1 - share) * mean.y;
      if (n < steps) {
        const next = posterior(density, points, x, y, times[n], weights);
        x += ((1 - share) * (next.x - mean.x)) / 2;
        y += ((1 - share) * (next.y - mean.y)) / 2;
        mean = next;
      }
      path.set([x, y], 2 * n);
    }
    return path;
  }

  /** Where `steps` equal Euler steps along the velocity (x - E[data]) / t end. */
  function eulerEnd(density, points, x, y, steps) {
    const weights = new Float64Array(points.length / 2);
    for (let n = steps; n > 0; n--) {
      const mean = posterior(density, points, x, y, n / steps, weights);
      x += (mean.x - x) / n;
      y += (mean.y - y) / n;
    }
    return [x, y];
  }

  /** Length of the paths over the distance of their ends: 1 is straight. */
  function straightness(paths) {
    let length = 0;
    let chord = 0;
    for (const path of paths) {
      const end = path.length - 2;
      for (let i = 2; i <= end; i += 2) length += Math.hypot(path[i] - path[i - 2], path[i + 1] - path[i - 1]);
      chord += Math.hypot(path[end] - path[0], path[end + 1] - path[1]);
    }
    return length / chord;
  }

  /** Mean distance of the pairs. */
  function meanDistance(points, noise) {
    let sum = 0;
    for (let i = 0; i < points.length; i += 2) sum += Math.hypot(points[i] - noise[i], points[i + 1] - noise[i + 1]);
    return sum / (points.length / 2);
  }

  const math = {
    assign, assignNoise, assignmentDensity, diagram, eulerEnd, gaussian, independentDensity, knnDensity,
    logSurvival, meanDistance, meanEffective, mix, pathTimes, posterior, samplingPath, shuffledDensity, straightness,
    survivalTable, uniform,
  };
  if (typeof module === "object" && module.exports) module.exports = math;
  else root.planeMath = math;
})(typeof self === "undefined" ? this : self);
