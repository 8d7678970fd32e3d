"""The servers: nginx, and one of canned bytes for what nginx cannot be told to send

`python servers.py PORT` is the second. It is a thread for each connection, so it can do one thing at a time quickly,
and is used for nothing else.
"""
import contextlib
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import scenarios

NGINX = '''
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    output_buffers 2 512k;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {plain} backlog=8192;
        {ipv6}
        listen {tls} ssl backlog=8192;
        ssl_protocols TLSv1.2 TLSv1.3;  # nginx's own default has no TLS 1.3 before 1.23.4
        include {folder}/locations;
    }}
    server {{
        listen {tls12} ssl backlog=8192;
        ssl_protocols TLSv1.2;
        include {folder}/locations;
    }}
}}
'''
LOCATIONS = '''
ssl_certificate {folder}/server.pem;
ssl_certificate_key {folder}/server.key;
root {folder}/files;
location = /small {{ return 200 "{small}"; }}
location = /close {{ keepalive_timeout 0; return 200 "{small}"; }}
location = /headers-20 {{ {headers} return 200 "{small}"; }}
location = /tls {{ return 200 $ssl_protocol; }}
location /up/ {{ dav_methods PUT; }}
'''


# Where client and server share a core, the server may run before the client has gone on, and its answer is there before
# the client waits for it, which no network does: the floors would never wait.
def pin_client():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def pin_server():
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def wait_for(port, process):
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port)):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f'A server did not start: {process.args}')


@contextlib.contextmanager
def running():
    """Starts them all: {'http', 'https', 'https-1.2' and 'canned': ports, 'ca': path of the authority}"""
    import trustme
    nginx = shutil.which('nginx', path=os.environ.get('PATH', '') + ':/usr/sbin:/usr/local/sbin')
    if nginx is None:
        raise SystemExit('nginx is not here: apt-get install nginx')
    # In memory, so that no disk is measured.
    folder = pathlib.Path(tempfile.mkdtemp(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None))
    processes = []
    try:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / 'ca.pem')
        certificate = authority.issue_cert('127.0.0.1', 'localhost')
        certificate.private_key_pem.write_to_path(folder / 'server.key')
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(folder / 'server.pem', append=True)
        (folder / 'files' / 'up').mkdir(parents=True)
        for content in ('64k', '256m'):
            data, repeats = scenarios.body_of(content)
            with open(folder / 'files' / content, 'wb') as file:
                file.writelines([data] * repeats)
        plain, tls, tls12, canned = (free_port() for _ in range(4))
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (folder / 'nginx.conf').write_text(NGINX.format(
            folder=folder, plain=plain, tls=tls, tls12=tls12, files=files, connections=files - 100,
            # The answers of `localhost` may begin with ::1.
            ipv6=f'listen [::1]:{plain};' if has_ipv6() else '', user='user root;' if os.getuid() == 0 else '',
        ))
        (folder / 'locations').write_text(LOCATIONS.format(
            folder=folder,
            small=scenarios.body_of('small')[0].decode().replace('\n', '\\n'),
            # With nginx's own five.
            headers=' '.join(f'add_header x-header-{i:02} "the value of header {i:02}";' for i in range(15)),
        ))
        for command in ([nginx, '-p', folder, '-c', folder / 'nginx.conf'], [sys.executable, __file__, str(canned)]):
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=pin_server))
        for port, process in zip((plain, canned), processes):
            wait_for(port, process)
        yield {'http': plain, 'https': tls, 'https-1.2': tls12, 'canned': canned, 'ca': str(folder / 'ca.pem')}
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        shutil.rmtree(folder)


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(('::1', 0))
        return True
    return False


def canned_responses():
    """{target: (head, bytes, how often they are repeated, last bytes)}"""
    ok = b'HTTP/1.1 200 OK\r\n'
    small = scenarios.body_of('small')[0]
    responses = {}
    for fields in (1, 10, 100, 1000):
        lines = b''.join(b'x-header-%03d: the value of header %03d\r\n' % (i, i) for i in range(fields - 1))
        responses[b'/head-%d' % fields] = (ok + lines + b'content-length: %d\r\n\r\n' % len(small) + small, b'', 0, b'')
    responses[b'/small'] = responses[b'/head-1']
    for target, content, size in ((b'/chunks-16k', 'chunks-16k', 16384), (b'/chunks-40', 'chunks-40', 40)):
        data, repeats = scenarios.body_of(content)
        chunks = b''.join(b'%x\r\n%b\r\n' % (size, data[at:at + size]) for at in range(0, len(data), size))
        if len(data) < scenarios.PIECE:  # many chunks in a write
            chunks, repeats = chunks * repeats, 1
        responses[target] = (ok + b'transfer-encoding: chunked\r\n\r\n', chunks, repeats, b'0\r\n\r\n')
    return responses


def serve_canned(port):
    responses = canned_responses()

    def answer(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError), sock:
            data = sock.recv(65536)
            while data:
                while not data.endswith(b'\r\n\r\n'):
                    data += sock.recv(65536)
                head, block, repeats, last = responses[data.split(b' ', 2)[1]]
                sock.sendall(head)
                for _ in range(repeats):
                    sock.sendall(block)
                sock.sendall(last)
                data = sock.recv(65536)

    with socket.create_server(('', port), backlog=100) as server:
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


if __name__ == '__main__':
    serve_canned(int(sys.argv[1]))
