# The batchyard binary, to run `batchyard serve` with real services.
FROM golang:1.26-alpine AS build
WORKDIR /src
# Modules change less often than the code, so they get their own layer.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/batchyard ./cmd/batchyard

# Alpine instead of distroless: docker-compose.yml needs a shell and wget.
FROM alpine:3.22
RUN apk add --no-cache ca-certificates tzdata \
 && adduser -D -H -u 10001 -h /var/lib/batchyard batchyard \
 && install -d -o batchyard -g batchyard -m 0750 /var/lib/batchyard
COPY --from=build /out/batchyard /usr/local/bin/batchyard
USER 10001:10001
WORKDIR /var/lib/batchyard
EXPOSE 8080
CMD ["batchyard", "serve"]
