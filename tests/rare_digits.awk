# Of what `hrm solve --format csv` prints: solved puzzles by the number of givens that the three digits with the fewest have between them.
#
#     hrm solve --guesses 1 --segments 64 --format csv PUZZLES.csv | awk -F, -f tests/rare_digits.awk
#
# Two is the mark of puzzles around a trivalue oddagon (docs/training.md).
NR > 1 {
    for (d = 1; d <= 9; d++) count[d] = gsub(d, "x", $1)
    rare = 0
    for (k = 0; k < 3; k++) {
        least = 1
        for (d = 2; d <= 9; d++) if (count[d] < count[least]) least = d
        rare += count[least]
        count[least] = 99
    }
    all[rare]++
    solved[rare] += $2 == "solved"
}
END { for (r = 0; r < 20; r++) if (all[r]) printf "%d givens: solved %d of %d, %.1f %%\n", r, solved[r], all[r], 100 * solved[r] / all[r] }
