"""Runs every client against every scenario, in interleaved rounds, and writes RESULTS.md and results.svg

    python bench/run.py [--quick] [--scenario NAME]... [--client NAME]... [--rounds N] [--against FOLDER]

Makes a virtual environment of its own, `.venv` in this folder, for what requirements.txt names; lowhaio is that of
this tree. See README.md.
"""
import argparse
import hashlib
import json
import os
import pathlib
import platform
import py_compile
import random
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import time

import scenarios
from scenarios import ALL, SCENARIOS

HERE = pathlib.Path(__file__).resolve().parent
TREE = HERE.parent
VENV = HERE / '.venv'
# Seconds of requests in each measurement; one transfer of 256 MiB may take longer, and is then the only one.
SECONDS = 0.25
MEASUREMENT_TIMEOUT = 60

IMPORT = '''
import json, time
def memory():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')) * 1024
begun, before, begun_wall = time.process_time(), memory(), time.perf_counter()
import asyncio, ssl
if {module!r} != 'ssl':
    begun, before, begun_wall = time.process_time(), memory(), time.perf_counter()
import {module}
print(json.dumps(dict(cpu=time.process_time() - begun, wall=time.perf_counter() - begun_wall, peak=memory(),
                      beyond=memory() - before, count=1)))
'''


def in_own_environment():
    """Makes the environment, if need be, and goes on in it"""
    requirements = HERE / 'requirements.txt'
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / 'made-for'
    if pathlib.Path(sys.prefix) == VENV:
        return
    if not stamp.exists() or stamp.read_text() != wanted:
        print('Making the virtual environment of the clients')
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'venv', VENV], check=True)
        subprocess.run([VENV / 'bin' / 'pip', 'install', '-q', '-r', requirements], check=True)
        stamp.write_text(wanted)
    os.execv(VENV / 'bin' / 'python', [VENV / 'bin' / 'python', *sys.argv])


def job_of(scenario, client, servers, verify, seconds, trees):
    server = 'canned' if scenario.content.startswith(('chunks-', 'head-')) else \
        {None: 'http', '1.2': 'https-1.2', '1.3': 'https'}[scenario.tls]
    origin = '{}://{}:{}'.format('https' if scenario.tls else 'http', scenario.host, servers[server])
    path = f'up/{client}'.replace(' ', '-') if scenario.act == 'up' else scenario.content
    length, sha256 = scenarios.expected(scenario.content)
    return dict(
        client='lowhaio' if client in trees else client, tree=str(trees.get(client, TREE)), ca=servers['ca'],
        content=scenario.content, act=scenario.act, at_once=scenario.at_once, uvloop=scenario.uvloop,
        url=f'{origin}/{path}', small=f'{origin}/small', fresh=scenario.fresh,
        tls=scenario.tls and (f'TLSv{scenario.tls}', f'{origin}/tls'),
        read_back='http://127.0.0.1:{http}/'.format(**servers) + path,
        hosts=[f'http://127.1.{i // 250}.{i % 250 + 1}:{servers[server]}/small' for i in range(scenario.idle_hosts)],
        length=length, sha256=sha256, seconds=seconds, verify=verify,
    )


def measured(scenario, client, servers, verify, seconds, trees):
    """The measurement, or {'error': reason}"""
    # Not all of this environment, whose proxies and authorities some of the clients obey.
    environment = {'PATH': os.environ['PATH'], 'PYTHONPATH': str(trees.get(client, TREE))}
    if scenario.act == 'import':
        module = 'lowhaio' if client in trees else 'ssl' if client == 'floor' else client
        command = ['-c', IMPORT.format(module=module)]
    else:
        command = [HERE / 'measure.py', json.dumps(job_of(scenario, client, servers, verify, seconds, trees))]
    try:
        process = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment,
                                 timeout=MEASUREMENT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return {'error': f'took longer than {MEASUREMENT_TIMEOUT} seconds'}
    if process.returncode:
        return {'error': process.stderr.strip().rpartition('\n')[2][:200]}
    return json.loads(process.stdout)


def run(chosen, clients, rounds, seconds, minutes, trees):
    """(results, reasons, load): of each (name of scenario, client) the measurements, or the reason why there are none;
    and what else the machine did"""
    import servers
    import tqdm
    results, reasons = {}, {}
    for scenario in chosen:
        for client in clients:
            reason = scenarios.reason_not(client, scenario)
            if client in (*scenario.clients, *trees) and reason is None:
                results[scenario.name, client] = []
            elif client in scenario.clients:
                reasons[scenario.name, client] = reason
    for tree in (TREE, *trees.values()):
        py_compile.compile(str(tree / 'lowhaio.py'))
    begun = begun_round = time.monotonic()
    loads, busy_before, own_before = [], cpu_of_all(), cpu_of_own()
    with servers.running() as origins, tqdm.tqdm(total=rounds * len(results), mininterval=1) as progress:
        for number in range(rounds):
            now = time.monotonic()
            if number and 2 * now - begun_round - begun > minutes * 60:
                progress.write(f'{number} rounds: another would end after {minutes:g} minutes')
                break
            begun_round = now
            loads.append(os.getloadavg()[0])
            for scenario, client in in_order(chosen, clients):
                key = (scenario.name, client)
                if key not in results:
                    continue
                progress.set_description(f'round {number + 1}: {scenario.name}, {client}', refresh=False)
                progress.update()
                if key in reasons:
                    continue
                result = measured(scenario, client, origins, not number, seconds, trees)
                if 'error' in result:
                    progress.write(f'{scenario.name}, {client}, tried again: {result["error"]}')
                    result = measured(scenario, client, origins, not number, seconds, trees)
                if 'error' in result:
                    reasons[key] = result['error']
                else:
                    results[key].append(result)
    seconds = time.monotonic() - begun
    others = max(0, cpu_of_all() - busy_before - (cpu_of_own() - own_before)) / seconds
    load = f'{seconds / 60:.0f} minutes, in which other work on the machine took {others:.1f} cores (load average as ' \
           f'each round began: {", ".join(f"{each:.1f}" for each in loads)}).'
    return {key: found for key, found in results.items() if found and key not in reasons}, reasons, load


def in_order(chosen, clients):
    """The (scenario, client) of a round: what is compared are neighbours in time, so that what else the machine does,
    and its drift, are the same for all"""
    families = {}
    for each in chosen:
        families.setdefault(scenarios.family(each), []).append(each)
    for family in random.sample(list(families.values()), len(families)):
        members = [(scenario, client) for scenario in family for client in clients]
        yield from random.sample(members, len(members))


def cpu_of_all():
    """Seconds of CPU that the machine has used, those of interrupts too"""
    with open('/proc/stat') as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


def cpu_of_own():
    """Those of this process, and of all that it has started and that ended"""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--scenario', action='append', choices=[each.name for each in SCENARIOS], metavar='NAME')
    parser.add_argument('--client', action='append', choices=ALL, metavar='NAME', help='lowhaio is always there')
    parser.add_argument('--rounds', type=int, default=5, help='at most (default: 5)')
    parser.add_argument('--minutes', type=float, default=14, help='a round that would end later is not begun')
    parser.add_argument('--quick', action='store_true', help='one short round, to see that all works')
    parser.add_argument('--against', type=pathlib.Path, metavar='FOLDER', help='also another lowhaio.py, in FOLDER')
    parser.add_argument('--list', action='store_true', help='lists the scenarios and the clients')
    parser.add_argument('--output', type=pathlib.Path, metavar='FOLDER', help='where the results are written (default: '
                        'the folder of this file, if all is measured; else nowhere)')
    options = parser.parse_args()
    if options.list:
        print('Scenarios:', *(f'  {each.name:16} {each.title}' for each in SCENARIOS), sep='\n')
        print('Clients:', *(f'  {each}' for each in ALL), sep='\n')
        return
    in_own_environment()
    import report
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the servers, and their files in memory, stay
    chosen = [each for each in SCENARIOS if not options.scenario or each.name in options.scenario]
    clients = [each for each in ALL if not options.client or each in (*options.client, 'lowhaio')]
    trees = {'lowhaio before': options.against.resolve()} if options.against else {}
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, SECONDS)
    results, reasons, load = run(chosen, clients + list(trees), rounds, seconds, options.minutes, trees)
    text = report.markdown(results, reasons, chosen, clients + list(trees), about(load))
    print(text)
    is_all = len(chosen) == len(SCENARIOS) and len(clients) == len(ALL) and not options.quick
    folder = options.output or (HERE if is_all else None)
    if folder:
        (folder / 'RESULTS.md').write_text(text)
        report.plot(results, clients, folder / 'results.svg')


def about(load):
    from importlib.metadata import version
    names = [name for name in ALL if name not in scenarios.LIMITS and name != 'lowhaio']
    versions = ', '.join(f'{name} {version(name)}' for name in names)
    return f'{time.strftime("%Y-%m-%d")}, {platform.python_implementation()} {platform.python_version()}, ' \
           f'{platform.system()}, {os.cpu_count()} shared cores; {load} {versions}, uvloop {version("uvloop")}, ' \
           f'{ssl.OPENSSL_VERSION.rpartition("  ")[0] or ssl.OPENSSL_VERSION}.'


if __name__ == '__main__':
    main()
