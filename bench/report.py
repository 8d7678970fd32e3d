"""The results as Markdown, and as a plot"""
import statistics

from scenarios import LIMITS, REACH, REACH_ALONE, REMARKS, SCENARIOS, SERIES

MiB = 2 ** 20


def medians(results, name, client, field):
    return statistics.median(each[field] for each in results[name, client])


def ratio(results, one, other, field='cpu'):
    """The median of the ratios of each round, whose parts were measured one soon after the other"""
    return statistics.median(a[field] / b[field] for a, b in zip(results[one], results[other]) if b[field])


def spread(values, scale, unit):
    """median (lowest to highest)"""
    low, middle, high = (each * scale for each in (min(values), statistics.median(values), max(values)))
    return f'{middle:,.3g} ({low:,.3g} to {high:,.3g}) {unit}' if high < 1000 else \
        f'{middle:,.0f} ({low:,.0f} to {high:,.0f}) {unit}'


def times(value):
    return f'{value:.2f}' if value < 10 else f'{value:.0f}'


def table(header, rows):
    lines = [header, ['---'] + ['--:'] * (len(header) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def markdown(results, reasons, chosen, clients, about):
    rounds = max(len(found) for found in results.values())
    return '\n'.join(part for part in (
        '# Results\n',
        f'{about}\n',
        f'{rounds} rounds; see README.md for how. Ratios are medians of the ratios in each round; spreads are the '
        'lowest and the highest.\n',
        '![CPU time relative to lowhaio](results.svg)\n',
        '## CPU time, relative to lowhaio\n',
        overview(results, chosen, clients),
        *reach(results),
        *fresh(results, clients),
        *growth(results, clients),
        '## All figures\n',
        *(details(results, scenario, clients) for scenario in chosen),
        notes(reasons, clients),
    ) if part)


def overview(results, chosen, clients):
    rows = []
    for scenario in chosen:
        if scenario.name.startswith(tuple(prefix for prefix, _, _ in SERIES)):
            continue
        lowhaio = (scenario.name, 'lowhaio')
        if lowhaio in results:
            rows.append([
                scenario.title, spread_of(results, scenario, 'lowhaio'),
                *(times(ratio(results, (scenario.name, client), lowhaio)) if (scenario.name, client) in results else '-'
                  for client in clients if client != 'lowhaio'),
            ])
    return rows and table(['', 'lowhaio', *(client for client in clients if client != 'lowhaio')], rows)


def unit(scenario):
    """(what a second of it is multiplied with, its unit)"""
    return (1e3, 'ms') if scenario.content in ('256m', 'chunks-16k') or scenario.act == 'import' else (1e6, 'µs')


def spread_of(results, scenario, client, field='cpu'):
    return spread([each[field] for each in results[scenario.name, client]], *unit(scenario))


def reach(results):
    """How near it came to what is wanted of it"""
    rows = []

    def add(name, what, found, at_most, unit, is_reached):
        rows.append([name, what, f'{at_most:g}{unit}', f'{found}{unit}', 'yes' if is_reached else '**no**'])

    for name, other, client, at_most in REACH:
        if (name, 'lowhaio') in results and (other, client) in results:
            found = times(ratio(results, (name, 'lowhaio'), (other, client)))
            what = f'× {client} at {other}' if other != name else f'× {client}'
            add(name, what, found, at_most, '', float(found) <= at_most)
    for name, what, field, scale, unit, at_most in REACH_ALONE:
        if (name, 'lowhaio') in results:
            found = f'{medians(results, name, "lowhaio", field) * scale:.2f}'
            add(name, what, found, at_most, unit, float(found) <= at_most)
    reached = sum(row[-1] == 'yes' for row in rows)
    return rows and ['## Reach: the CPU time of lowhaio, and what else it takes\n',
                     table(['scenario', '', 'wanted, at most', 'found', 'reached'], rows),
                     f'{reached} of {len(rows)} are reached.\n']


def fresh(results, clients):
    """What a process pays for large blocks until it has freed one"""
    for scenario in (each for each in SCENARIOS if each.fresh):
        warmed = scenario.name.replace('-fresh', '')
        rows = [
            [client, *(f'{medians(results, name, client, "cpu") * 1e6:.3g}' for name in (scenario.name, warmed)),
             times(ratio(results, (scenario.name, client), (warmed, client))),
             *(f'{medians(results, name, client, "faults"):.2f}' for name in (scenario.name, warmed)),
             {None: 'unknown', True: 'yes', False: 'no'}[results[scenario.name, client][-1]['fresh']]]
            for client in clients if (scenario.name, client) in results and (warmed, client) in results
        ]
        if rows:
            yield f'## {scenario.title[0].upper()}{scenario.title[1:]}: CPU per request, µs, and page faults\n'
            yield table(['', 'fresh', 'warmed', 'fresh × warmed', 'faults, fresh', 'faults, warmed',
                         'fresh to the end'], rows)


def growth(results, clients):
    """Tables of CPU per request, and of memory where that grows, for each series"""
    for prefix, title, counted in SERIES:
        names = [each.name for each in SCENARIOS if each.name.startswith(prefix) and (each.name, 'lowhaio') in results]
        if len(names) < 2:
            continue
        yield f'## {title[0].upper()}{title[1:]}: CPU per request, µs\n'
        yield table([counted, *(f'{int(name[len(prefix):]):,}' for name in names)], [
            [client, *(f'{medians(results, name, client, "cpu") * 1e6:.3g}' if (name, client) in results else '-'
                       for name in names)]
            for client in clients if any((name, client) in results for name in names)
        ])
        if prefix == 'at-once-':
            yield 'Memory per request in flight, KiB, beyond what the process had after its first request:\n'
            yield table([counted, *(f'{int(name[len(prefix):]):,}' for name in names)], [
                [client, *(f'{medians(results, name, client, "beyond") / 1024 / int(name[len(prefix):]):.1f}'
                           if (name, client) in results else '-' for name in names)]
                for client in clients if any((name, client) in results for name in names)
            ])


def details(results, scenario, clients):
    lowhaio = (scenario.name, 'lowhaio')
    rows = []
    for client in clients:
        key = (scenario.name, client)
        if key in results:
            peaks = [each['peak'] for each in results[key]]
            rows.append([
                client,
                spread_of(results, scenario, client), times(ratio(results, key, lowhaio)),
                spread_of(results, scenario, client, 'wall'), times(ratio(results, key, lowhaio, 'wall')),
                spread(peaks, 1 / MiB, 'MiB'), times(ratio(results, key, lowhaio, 'peak')),
            ])
        elif client in scenario.clients:
            rows.append([client, *'------'])
    return f'### {scenario.title} (`{scenario.name}`)\n\n' + table(
        ['', 'CPU', '× lowhaio', 'wall', '× lowhaio', 'peak memory', '× lowhaio'], rows)


def notes(reasons, clients):
    lines = [f'- {name}: {what}.' for name, what in {**LIMITS, **REMARKS}.items() if name in clients]
    for client in clients:
        by_reason = {}
        for (name, its_client), reason in reasons.items():
            if its_client == client:
                by_reason.setdefault(reason, []).append(name)
        lines += [f'- No {client} at {", ".join(names)}: {reason}.' for reason, names in by_reason.items()]
    return '## What the lines are, and why some are missing\n\n' + '\n'.join(lines) + '\n'


def plot(results, clients, path):
    """Small multiples: CPU time relative to lowhaio, and how it grows"""
    import matplotlib
    matplotlib.use('svg')
    # Text stays text, and the same results give the same file.
    matplotlib.rcParams.update({
        'svg.fonttype': 'none', 'svg.hashsalt': 'lowhaio', 'font.family': 'sans-serif', 'font.size': 9,
        'axes.spines.top': False, 'axes.spines.right': False,
    })
    from matplotlib import pyplot
    prefixes = tuple(prefix for prefix, _, _ in SERIES)
    compared = [each for each in SCENARIOS if not each.name.startswith(prefixes) and (each.name, 'lowhaio') in results]
    columns = 5
    rows = -(-len(compared) // columns)
    figure = pyplot.figure(figsize=(12, 2.6 * rows + 3.6), layout='constrained')
    bars, lines = figure.subfigures(2, 1, height_ratios=(2.6 * rows, 3.6))
    shown = [client for client in reversed(clients) if client != 'lowhaio']
    axes = list(bars.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis, scenario in zip(axes, compared):
        bars_of(axis, results, scenario, shown)
    for axis in axes[len(compared):]:
        axis.set_visible(False)
    bars.suptitle('CPU time of the client, relative to lowhaio (the line at 1): to the left less, to the right more. '
                  'Grey: nothing is parsed.')
    panels = [(*series, 'cpu') for series in SERIES] + [(*SERIES[0], 'beyond')]
    axes = lines.subplots(1, len(panels))
    for axis, (prefix, title, _, field) in zip(axes, panels):
        growth_of(axis, results, clients, prefix, field)
        axis.set_title('KiB per request in flight, by\nrequests at once' if field == 'beyond' else
                       f'µs of CPU per request, by\n{title}', fontsize=9)
    lines.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(clients), frameon=False)
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)


COLOURS = {
    'lowhaio': '#d62728', 'floor': '#999999', 'kept floor': '#bbbbbb', 'blocking': '#777777', 'aiohttp': '#1f77b4',
    'pyreqwest': '#2ca02c', 'wreq': '#9467bd', 'pyqwest': '#ff7f0e',
}
OTHERS = '#9ecae1'


def bars_of(axis, results, scenario, clients):
    for at, client in enumerate(clients):
        key = (scenario.name, client)
        value = ratio(results, key, (scenario.name, 'lowhaio')) if key in results else None
        if value:
            axis.barh(at, value - 1, left=1, height=0.7, color=COLOURS.get(client, OTHERS))
        axis.annotate(times(value) if value else '-', (max(value or 1, 1), at), (3, 0), va='center', fontsize=7,
                      textcoords='offset points')
    axis.set_xscale('log')
    axis.set_xlim(0.08, 200)
    axis.set_xticks([0.1, 1, 10], ['0.1', '1', '10'])
    axis.minorticks_off()
    axis.set_yticks(range(len(clients)), clients, fontsize=8)
    axis.tick_params(axis='y', length=0)
    axis.axvline(1, color=COLOURS['lowhaio'], linewidth=1.5)
    axis.set_title(scenario.title, fontsize=9)


def growth_of(axis, results, clients, prefix, field):
    sizes = [int(each.name[len(prefix):]) for each in SCENARIOS if each.name.startswith(prefix)]
    if field == 'beyond':
        sizes = [size for size in sizes if size >= 100]  # with fewer, pages are seen, and not requests
    for client in clients:
        points = [(size, medians(results, f'{prefix}{size}', client, field)) for size in sizes
                  if (f'{prefix}{size}', client) in results]
        if len(points) > 1:
            axis.plot([f'{size:,}' for size, _ in points],
                      [value / 1024 / size if field == 'beyond' else value * 1e6 for size, value in points],
                      marker='o', markersize=3, color=COLOURS.get(client, OTHERS), label=client)
    if prefix == 'head-':
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:,.0f}')
        axis.yaxis.set_minor_formatter('')
    else:
        axis.set_ylim(bottom=0)
